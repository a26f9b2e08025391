//! The daemon at rest beside the node exporter: both scraped alike, at the same time.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::exporter;
use super::run::{FRAGWATCH, family, proportional_bytes, stat_field, status_bytes};
use super::samples::{Samples, Unit, show};
use super::scrape::Target;
use super::support::child::Child;
use super::support::{Bed, Here, MIB, NotHere, guest};
use super::table::Row;

const IMAGES: u64 = 1000;
/// As Prometheus does by default in Debian's configuration.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);
/// Sweeps and scrapes before the measurement: a memory that grows shows only later.
const WARM_UP: Duration = Duration::from_secs(65);
/// Of a whole number of scrapes and of sweeps.
const MEASURED: Duration = Duration::from_secs(120);

pub fn rows(_: usize) -> Here<Vec<Row>> {
    let node_exporter = exporter::program()?;
    let bed = Bed::xfs()?;
    let images = bed.path().join("images");
    fs::create_dir(&images).map_err(NotHere::because)?;
    for n in 0..IMAGES {
        guest::alternate_blocks(&images.join(format!("vm-{n:04}.raw")), 50);
    }
    let config = bed.path().join("fragwatch.toml");
    let addresses = free_addresses();
    fs::write(&config, configuration(&images, addresses[0])).map_err(NotHere::because)?;

    let log = File::create(bed.path().join("log")).map_err(NotHere::because)?;
    let mut fragwatch = Service::start(
        Command::new(FRAGWATCH)
            .args(["run", "--config"])
            .arg(&config)
            .stderr(log),
        addresses[0],
    )?;
    let listen = format!("--web.listen-address={}", addresses[1]);
    let mut node_exporter = Service::start(
        Command::new(node_exporter)
            .arg(listen)
            .stderr(Stdio::null()),
        addresses[1],
    )?;
    let both = &mut [&mut fragwatch, &mut node_exporter];
    watch(both, WARM_UP);
    for service in both.iter_mut() {
        service.begin();
    }
    watch(both, MEASURED);
    Ok(table(fragwatch.end(), node_exporter.end()))
}

pub fn configuration(images: &Path, listen: SocketAddr) -> String {
    format!(
        "[images]\npaths = [\"{}\"]\nmin_size = \"0B\"\n\
         [sampling]\nmap_interval = \"never\"\n\
         [metrics]\nlisten = \"{listen}\"\n",
        images.display()
    )
}

fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

/// Scrapes all of them at the same moments and looks at their memory each second.
pub fn watch(services: &mut [&mut Service], duration: Duration) {
    let began = Instant::now();
    let mut next_scrape = began;
    let mut next_look = began;
    while next_look < began + duration {
        sleep(next_look.saturating_duration_since(Instant::now()));
        if next_look >= next_scrape {
            for service in services.iter_mut() {
                service.scrape();
            }
            next_scrape += SCRAPE_INTERVAL;
        }
        for service in services.iter_mut() {
            service.look();
        }
        next_look += Duration::from_secs(1);
    }
    sleep((began + duration).saturating_duration_since(Instant::now()));
}

/// Something that serves metrics.
pub struct Service {
    process: Child,
    pub target: Target,
    /// Resident memory of the process alone, of its children, and what they have together, pages
    /// that they share counted once; in bytes, each second.
    own: Vec<f64>,
    children: Vec<f64>,
    together: Vec<f64>,
    scrapes: Vec<f64>,
    scraped_bytes: usize,
    began: Instant,
    ticks_before: u64,
}

/// What was seen of it.
pub struct Seen {
    pub own: Samples,
    pub children: Samples,
    pub together: Samples,
    pub peak: f64,
    scrapes: Samples,
    scraped_bytes: usize,
    processor_per_minute: Samples,
}

impl Service {
    pub fn start(command: &mut Command, address: SocketAddr) -> Here<Service> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Child::spawn(command).map_err(NotHere::because)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let target = loop {
            match Target::connect(address) {
                Ok(target) => break target,
                Err(error) if Instant::now() >= deadline => {
                    let program = command.get_program().to_string_lossy();
                    let why = format_args!("{program} does not serve: {error}");
                    return Err(NotHere::because(why));
                }
                Err(_) => sleep(Duration::from_millis(20)),
            }
        };
        let mut service = Service {
            process,
            target,
            own: Vec::new(),
            children: Vec::new(),
            together: Vec::new(),
            scrapes: Vec::new(),
            scraped_bytes: 0,
            began: Instant::now(),
            ticks_before: 0,
        };
        service.begin();
        Ok(service)
    }

    /// Forgets what was seen so far.
    pub fn begin(&mut self) {
        self.own.clear();
        self.children.clear();
        self.together.clear();
        self.scrapes.clear();
        self.ticks_before = self.ticks();
        self.began = Instant::now();
    }

    fn scrape(&mut self) {
        let began = Instant::now();
        let body = self.target.scrape().expect("it serves");
        self.scrapes.push(began.elapsed().as_secs_f64());
        self.scraped_bytes = body.len();
    }

    fn look(&mut self) {
        let own = self.process.id();
        let family = family(own);
        let resident = |pid| status_bytes(pid, "VmRSS").unwrap_or(0) as f64;
        self.own.push(resident(own));
        let children = family.iter().filter(|pid| **pid != own);
        self.children.push(children.map(|pid| resident(*pid)).sum());
        let proportional = family.iter().filter_map(|pid| proportional_bytes(*pid));
        self.together.push(proportional.sum::<u64>() as f64);
    }

    /// Processor time of all its processes so far, in clock ticks: user and system.
    fn ticks(&self) -> u64 {
        family(self.process.id())
            .iter()
            .flat_map(|pid| [14, 15].map(|field| stat_field(*pid, field).unwrap_or(0)))
            .sum()
    }

    pub fn end(self) -> Seen {
        let minutes = self.began.elapsed().as_secs_f64() / 60.0;
        let seconds = (self.ticks() - self.ticks_before) as f64 / ticks_per_second();
        let peaks = family(self.process.id()).into_iter();
        let peak = peaks
            .filter_map(|pid| status_bytes(pid, "VmHWM"))
            .sum::<u64>() as f64;
        let bytes = |values| Samples::new(Unit::Bytes, values);
        Seen {
            own: bytes(self.own),
            children: bytes(self.children),
            together: bytes(self.together),
            peak,
            scrapes: Samples::new(Unit::Seconds, self.scrapes),
            scraped_bytes: self.scraped_bytes,
            processor_per_minute: Samples::new(Unit::Seconds, vec![seconds / minutes]),
        }
    }
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

fn table(ours: Seen, theirs: Seen) -> Vec<Row> {
    let name = "prometheus-node-exporter";
    let limit = 12 * MIB;
    let work = format!("daemon with {IMAGES} images at rest");
    vec![
        Row::plain(
            format!("{work}: resident memory, daemon and helper (PSS)"),
            format!(
                "{} (RSS: daemon {}, helper {}; sum of their peaks {})",
                ours.together,
                ours.own,
                ours.children,
                show(Unit::Bytes, ours.peak)
            ),
            format!("`{name}` {} (RSS {})", theirs.together, theirs.own),
            format!("below {}", show(Unit::Bytes, limit as f64)),
            ours.together.most() < limit as f64,
        ),
        Row::ratio(
            format!("{work}: processor time a minute"),
            &ours.processor_per_minute,
            name,
            &theirs.processor_per_minute,
            1.0,
        ),
        Row::for_information(
            format!(
                "{work}: a scrape, {} (node exporter: {})",
                show(Unit::Bytes, ours.scraped_bytes as f64),
                show(Unit::Bytes, theirs.scraped_bytes as f64)
            ),
            &ours.scrapes,
            name,
            &theirs.scrapes,
        ),
    ]
}
