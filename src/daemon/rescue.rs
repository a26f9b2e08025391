//! The slow side of the rescue: starts the fast side, hears what it did, and tells the log and the
//! metrics. Nothing here is needed for a rescue to happen.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::chronicle::Teller;
use super::klog_files::{FileMatch, LogFiles};
use super::witness::Witness;
use crate::config::Settings;
use crate::klog::{DRILL_MARKER, RuleId, Rules};
use crate::model::{Bytes, Monotonic, Outcome, RuleAction, Trigger, UnixTime};
use crate::rescue::LadderSettings;
use crate::rescue::clock::now;
use crate::rescue::entry::{Line, Notice, Report};
use crate::rescue::proof::{Counters, Files};
use crate::rescue::thread::{Armament, FastSide, Setup};
use crate::serve::board::Board;
use crate::serve::{metrics, status};
use crate::sys::realtime::{Urgency, lock_no_more};

/// The kernel's log.
const KMSG: &str = "/dev/kmsg";
/// How often the path from the kernel's log to the actor is tried out.
const DRILL_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// After one that failed it is tried again soon.
const DRILL_AGAIN: Duration = Duration::from_secs(60);
/// A drill that takes longer has failed.
const DRILL_PATIENCE: Duration = Duration::from_secs(5);
/// How often the early warnings are read, and the counters of the fast side.
const TICK: Duration = Duration::from_secs(10);

/// How far back the kernel's log is read at the start, so that a restart in mid-storm loses
/// nothing. After a reload nothing was missed, and old lines must not act twice.
const LOOK_BACK: Duration = Duration::from_secs(10);

/// Starts the fast side as the settings want it, and says in the log how well it is armed. Nothing
/// if the settings want none, or if it cannot be started: the daemon counts extents all the same.
pub(super) fn start(settings: &Settings) -> Option<FastSide> {
    start_from(settings, LOOK_BACK)
}

fn start_from(settings: &Settings, look_back: Duration) -> Option<FastSide> {
    if !settings.rescue.enabled {
        warn!("the rescue is off (rescue.enabled = false)");
        return None;
    }
    match setup(settings, look_back).and_then(|setup| Ok(FastSide::start(setup)?)) {
        Ok(fast) => {
            tell_armament(&fast.armament);
            Some(fast)
        }
        Err(reason) => {
            error!("there will be no rescue: {reason:#}");
            None
        }
    }
}

/// What the settings make of the fast side. Without a watchdog if systemd has none.
///
/// # Errors
/// When a rule of the configuration is none; that is refused when the configuration is read.
pub(crate) fn setup(settings: &Settings, look_back: Duration) -> anyhow::Result<Setup> {
    let rules = Rules::compile(&settings.klog.rules).context("klog.rule")?;
    let rescue = &settings.rescue;
    Ok(Setup {
        kmsg: settings.klog.kmsg.then(|| PathBuf::from(KMSG)),
        look_back,
        proc: PathBuf::from("/proc"),
        rules: Arc::new(rules),
        ladder: LadderSettings {
            steps: rescue.steps.clone(),
            min_interval: rescue.min_interval,
            quiet_after: rescue.quiet_after,
            max_actions_per_hour: rescue.max_actions_per_hour,
        },
        dry_run: rescue.dry_run,
        watchdog: watchdog(),
    })
}

fn tell_armament(armament: &Armament) {
    if let Err(error) = &armament.kmsg {
        error!(
            "the kernel's log cannot be read: {KMSG}: {error}; nothing it says can start a rescue"
        );
    }
    if let Err(error) = &armament.memory {
        warn!(
            "memory is not locked ({error}): the rescue may have to wait for a page from disk; CAP_IPC_LOCK or a larger LimitMEMLOCK= helps"
        );
    }
    match armament.urgency {
        Urgency::RealTime => info!("the rescue is armed"),
        Urgency::Raised => info!("the rescue is armed, at raised but not real-time priority"),
        Urgency::Ordinary => warn!(
            "the rescue is armed, at ordinary priority: on a busy host it may be late; CAP_SYS_NICE helps"
        ),
    }
}

/// Listens to the fast side, and builds it anew when its settings have changed, for as long as the
/// daemon runs.
pub(super) async fn run(
    mut fast: Option<FastSide>,
    mut settings: watch::Receiver<Arc<Settings>>,
    board: Arc<Board>,
    teller: Teller,
    incidents: PathBuf,
) {
    loop {
        let before = Arc::clone(&settings.borrow_and_update());
        board.update_rescue(|rescue| {
            *rescue = status::Rescue {
                armed: fast.is_some(),
                dry_run: before.rescue.dry_run,
                ..status::Rescue::default()
            }
        });
        let changed = async {
            while settings.changed().await.is_ok() {
                let now = settings.borrow_and_update();
                if now.klog != before.klog || now.rescue != before.rescue {
                    return Some(Arc::clone(&now));
                }
            }
            None
        };
        let changed = match &mut fast {
            Some(fast) => tokio::select! {
                changed = changed => changed,
                () = listen(fast, &before, &board, &teller, &incidents) => None,
            },
            None => tokio::select! {
                changed = changed => changed,
                () = feed_watchdog() => None,
            },
        };
        let Some(changed) = changed else { return };
        if let Some(fast) = fast.take() {
            // Not waited for: an action in flight may hang, and the new threads need not.
            fast.exchange.stop();
        }
        fast = start_from(&changed, Duration::ZERO);
    }
}

/// Feeds systemd's watchdog for as long as there is no fast side to do it.
async fn feed_watchdog() {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        super::notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep(interval / 3).await;
    }
}

/// Listens for as long as there is something to listen to.
async fn listen(
    fast: &mut FastSide,
    settings: &Settings,
    board: &Arc<Board>,
    teller: &Teller,
    incidents: &Path,
) {
    let events = match fast
        .exchange
        .slow_side()
        .try_clone()
        .and_then(UnixStream::from_std)
    {
        Ok(events) => events,
        Err(reason) => return error!("nothing will be heard of the rescue: {reason}"),
    };
    let memory = Files::open(Path::new("/proc"));
    let names = fast.rules.iter().map(|(_, name, _)| name.to_owned());
    let mut listener = Listener::new(names.collect(), Arc::clone(board));
    let mut files = LogFiles::start(&settings.klog, &fast.rules);
    let witness = Witness::start(&settings.rescue, incidents, &fast.exchange, board, teller);
    metrics::klog_source("kmsg", fast.armament.kmsg.is_ok());
    // The stall detector has its memory too.
    if fast.armament.memory.is_ok()
        && let Err(error) = lock_no_more()
    {
        debug!("all memory stays locked: {error}");
    }
    let mut ticks = tokio::time::interval(TICK);
    let mut drill = Instant::now();
    loop {
        tokio::select! {
            _ = events.readable() => while events.try_read(&mut [0; 64]).is_ok() {},
            found = files.next() => {
                listener.file_match(&found);
                witness.file_line(&found, listener.name(found.rule), files.path(&found));
                if found.action == RuleAction::Rescue && settings.klog.files_may_rescue {
                    fast.exchange.trigger(Trigger::File);
                }
            }
            _ = ticks.tick() => {
                files.tell_states();
                witness.tell_states();
                if let Ok(memory) = &memory {
                    board.post_memory(metrics::render_memory(&memory.read(&mut [0; 4096])));
                }
            }
            () = tokio::time::sleep_until(drill) => {
                listener.begin_drill(fast);
                drill = Instant::now() + DRILL_INTERVAL;
            }
        }
        while let Some(notice) = fast.notices.pop() {
            let mut rule = "";
            if let Notice::Matched {
                rule: id, line, at, ..
            } = &notice
            {
                files.kernel_said(line, *at);
                rule = listener.name(*id);
            }
            witness.notice(&notice, rule);
            listener.notice(&notice);
        }
        while let Some(report) = fast.reports.pop() {
            witness.report(&report);
            listener.report(&report);
        }
        if listener.drill_has_failed() {
            drill = Instant::now() + DRILL_AGAIN;
        }
        metrics::klog_read(fast.exchange.records(), fast.exchange.lost());
        metrics::rescue_news_lost(fast.notices.lost().saturating_add(fast.reports.lost()));
    }
}

struct Listener {
    /// Names of the rules, by their number.
    names: Vec<String>,
    drill: Option<Drill>,
    /// Whether there is an incident.
    incident: bool,
    board: Arc<Board>,
}

/// A drill under way.
struct Drill {
    nonce: u64,
    began: Monotonic,
    seen: bool,
}

impl Listener {
    fn new(names: Vec<String>, board: Arc<Board>) -> Self {
        metrics::rescue_begins(&names);
        Listener {
            names,
            drill: None,
            incident: false,
            board,
        }
    }

    fn set_incident(&mut self, incident: bool) {
        self.incident = incident;
        self.board
            .update_rescue(|rescue| rescue.incident = incident);
    }

    /// Tells how a drill went: how long it took, or nothing if it failed.
    fn tell_roundtrip(&self, took: Option<Duration>) {
        metrics::klog_roundtrip(took);
        self.board.update_rescue(|rescue| {
            rescue.drilled = Some(UnixTime::from_seconds(super::now()));
            rescue.roundtrip_seconds = took.map(|took| took.as_secs_f64());
        });
    }

    fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Matched { rule, line, .. } => self.matched("kernel log", *rule, line),
            Notice::Began(began, _) => {
                self.set_incident(true);
                metrics::incident_began(began.trigger);
                error!(
                    "incident {} begins: XFS waits for memory ({})",
                    began.incident, began.trigger
                );
            }
            Notice::Ended(ended, at) => {
                self.set_incident(false);
                metrics::incident_ended();
                warn!(
                    "incident {} is over after {} s: {} signs, {} actions, {} of them failed",
                    ended.incident,
                    at.since(ended.began).as_secs(),
                    ended.matches,
                    ended.actions,
                    ended.failed
                );
            }
            Notice::Limited(_) => error!(
                "a rescue is due but rescue.max_actions_per_hour is reached; XFS still waits for memory"
            ),
            Notice::DrillSeen { nonce, at } => {
                if let Some(drill) = self.drill.as_mut().filter(|drill| drill.nonce == *nonce) {
                    drill.seen = true;
                    let took = at.since(drill.began);
                    self.tell_roundtrip(Some(took));
                }
            }
            Notice::Source(0) => {
                metrics::klog_source("kmsg", true);
                info!("the kernel's log can be read again");
            }
            Notice::Source(number) => {
                metrics::klog_source("kmsg", false);
                let reason = io::Error::from_raw_os_error(number.cast_signed());
                error!("the kernel's log cannot be read any more: {reason}");
            }
        }
    }

    fn file_match(&self, found: &FileMatch) {
        self.matched("log file", found.rule, &found.line);
    }

    fn name(&self, rule: RuleId) -> &str {
        self.names
            .get(usize::from(rule.0))
            .map_or("unknown", String::as_str)
    }

    fn matched(&self, source: &str, rule: RuleId, line: &Line) {
        let name = self.name(rule);
        metrics::klog_matched(name);
        warn!(
            "{source}, {name}: {}",
            String::from_utf8_lossy(line.bytes())
        );
    }

    fn report(&mut self, report: &Report) {
        if report.drill {
            return self.end_drill(report);
        }
        let step = report.order.step;
        metrics::rescue_acted(step, report.outcome, report.began.since(report.read));
        let effect = effect(&report.before, &report.after);
        let took = report.ended.since(report.began).as_millis();
        match report.outcome {
            Outcome::Done => warn!("rescue {step} done in {took} ms: {effect}"),
            Outcome::DryRun => warn!("rescue {step} not done: rescue.dry_run = true"),
            Outcome::Failed if report.error != 0 => {
                let reason = io::Error::from_raw_os_error(report.error.cast_signed());
                error!("rescue {step} failed: {reason}");
            }
            Outcome::Failed => {
                error!("rescue {step} failed: the kernel's own counter did not move; {effect}");
            }
        }
    }

    fn begin_drill(&mut self, fast: &FastSide) {
        let began = now();
        let nonce = began.0.max(1);
        fast.exchange.expect_drill(nonce, false);
        let written = write_drill(Path::new(KMSG), nonce).inspect_err(|reason| {
            error!("cannot write to {KMSG}: {reason}");
        });
        // One that was not written fails when its time is over, as one that was lost.
        drop(written);
        self.drill = Some(Drill {
            nonce,
            began,
            seen: false,
        });
    }

    fn end_drill(&mut self, report: &Report) {
        let Some(drill) = self.drill.take_if(|drill| drill.seen) else {
            return;
        };
        let took = report.ended.since(drill.began);
        self.tell_roundtrip(Some(took));
        info!(
            "drill: from the kernel's log to the actor in {} µs",
            took.as_micros()
        );
    }

    /// A drill that has not come to its end in time has failed; unless there is an incident, which
    /// keeps the actor for itself and proves the rest better than any drill.
    fn drill_has_failed(&mut self) -> bool {
        let late = |drill: &mut Drill| now().since(drill.began) >= DRILL_PATIENCE;
        let Some(drill) = self.drill.take_if(late) else {
            return false;
        };
        if drill.seen && self.incident {
            return false;
        }
        self.tell_roundtrip(None);
        let where_to = if drill.seen {
            "was not carried out"
        } else {
            "did not come back"
        };
        error!("drill failed: its record {where_to}; try `fragwatch drill`");
        true
    }
}

/// Writes the record of a drill to the kernel's log: level 6, and not of the kernel's own facility,
/// which only the kernel can write.
///
/// # Errors
/// Those of opening and writing.
pub(crate) fn write_drill(kmsg: &Path, nonce: u64) -> io::Result<()> {
    let mut record = b"<6>".to_vec();
    record.extend(DRILL_MARKER);
    record.extend(nonce.to_string().bytes());
    record.push(b'\n');
    OpenOptions::new()
        .write(true)
        .open(kmsg)?
        .write_all(&record)
}

/// What an action brought, in words.
#[must_use]
pub(crate) fn effect(before: &Counters, after: &Counters) -> String {
    let kib = |kib: u64| Bytes(kib.saturating_mul(1024));
    // Blocks of 64 KiB and more: what the older kernels' extent lists need (order 4).
    let large = |counters: &Counters| counters.free_blocks.iter().skip(4).sum::<u64>();
    format!(
        "reclaimable slab {} to {}, free blocks of 64 KiB and more {} to {}",
        kib(before.slab_reclaimable),
        kib(after.slab_reclaimable),
        large(before),
        large(after)
    )
}

/// systemd's watchdog, if it is on (sd_watchdog_enabled(3)): a socket that is connected now, for in
/// an emergency nothing is opened.
fn watchdog() -> Option<crate::rescue::Watchdog> {
    let interval = sd_notify::watchdog_enabled()? / 3;
    let socket = notify_socket()?;
    Some(crate::rescue::Watchdog {
        socket,
        interval,
        fed: Monotonic::default(),
    })
}

fn notify_socket() -> Option<OwnedFd> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket.into())
}
