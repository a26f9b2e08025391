//! `fragwatch plan` on real file systems, without a daemon: each reason to leave an image alone,
//! brought about and told. What only a daemon can bring about stands in `tests/daemon/maintenance.rs`:
//! a run under way, cooling down, put off, a file system that hangs, an incident.
//!
//! Not brought about: a realtime device and DAX, which the bed has not; no engine, which no
//! configuration can say; a file system that nobody has looked at yet.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use support::bed::Plan;
use support::daemon::fragwatch;
use support::qemu::Vm;
use support::rundir::Place;
use support::skip::NotHere;
use support::{Bed, Here, MIB, guest, tools};

/// Windows that are always open.
const ALWAYS: &str = r#"
[[maintenance.window]]
days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
start = "00:00"
duration = "24h"
"#;

/// The host's other load is none of our business.
const FSR: &str = "[defrag]\nengines = [\"xfs_fsr\"]\nmax_io_pressure = 100\n";

/// A bed, and a configuration beside it.
struct Stage {
    bed: Bed,
}

impl Stage {
    fn new(mkfs: &[&str]) -> Here<Stage> {
        let bed = Bed::xfs_with(mkfs)?;
        Ok(Stage { bed })
    }

    /// With a fragmented image.
    fn fragmented(mkfs: &[&str]) -> Here<(Stage, PathBuf)> {
        let stage = Stage::new(mkfs)?;
        let image = stage.image("vm.raw", 8 * MIB, 2048);
        Ok((stage, image))
    }

    fn image(&self, name: &str, size: u64, writes: u64) -> PathBuf {
        let image = self.bed.path().join(name);
        guest::random_direct_writes(&image, size, writes);
        self.bed.sync();
        image
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.bed.path().parent().unwrap().join(name)
    }

    fn command(&self, more: &str) -> Command {
        let config = self.beside("fragwatch.toml");
        let text = format!(
            "[images]\npaths = [{:?}]\nmin_size = \"0B\"\n\
             [thresholds]\nwarning = {{ extents = 1000 }}\n{more}",
            self.bed.path()
        );
        fs::write(&config, text).unwrap();
        let mut command = fragwatch();
        command.arg("plan").arg("--config").arg(config);
        command.env("STATE_DIRECTORY", self.beside("state"));
        command.env("RUNTIME_DIRECTORY", self.beside("state"));
        command
    }

    /// What is planned with an image.
    fn planned(&self, image: &Path, more: &str) -> Value {
        let output = self.command(more).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let images = plan["images"].as_array().unwrap();
        let is_it = |planned: &&Value| planned["path"] == image.to_str().unwrap();
        let planned = images.iter().find(is_it);
        planned.unwrap_or_else(|| panic!("{plan}")).clone()
    }

    /// It is left alone for this reason.
    #[track_caller]
    fn left_alone(&self, image: &Path, more: &str, code: &str, words: &str) {
        let planned = self.planned(image, more);
        let why = &planned["why_not"];
        assert_eq!(why["code"], code, "{planned}");
        let text = why["text"].as_str().unwrap();
        assert!(text.contains(words), "{text}");
        assert_eq!(planned["run"], Value::Null);
    }

    /// It runs by this engine: nothing else was wrong with it.
    #[track_caller]
    fn runs(&self, image: &Path, more: &str, engine: &str) {
        let planned = self.planned(image, more);
        assert_eq!(planned["run"]["engine"], engine, "{planned}");
    }
}

fn always(defrag: &str) -> String {
    format!("{defrag}{ALWAYS}")
}

#[test]
fn no_window_or_none_in_sight() {
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    stage.left_alone(&image, FSR, "no_window", "no window configured");
    let blackout = "[[maintenance.blackout]]\nfrom = 2020-01-01\nto = 9000-01-01\n";
    let never = format!("{}{blackout}", always(FSR));
    stage.left_alone(&image, &never, "no_window_in_sight", "blackouts");
    stage.runs(&image, &always(FSR), "xfs_fsr");
}

/// /etc/localtime, or TZ, names a zone whose file went to the package tzdata-legacy.
#[test]
fn the_zone_of_the_host_is_known_without_its_file() {
    let stage = support::require!(Stage::new(&[]));
    let unshare = support::require!(tools::have("unshare"));
    let (etc, zoneinfo) = (stage.beside("etc"), stage.beside("zoneinfo"));
    fs::create_dir(&etc).unwrap();
    let case = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/cases/E01/make-tzdir.sh"
    );
    let made = Command::new("sh")
        .arg(case)
        .arg(&zoneinfo)
        .status()
        .unwrap();
    assert!(made.success(), "package tzdata");
    let opens = |target: Option<&str>, variable: Option<&str>| {
        let link = etc.join("localtime");
        let _ = fs::remove_file(&link);
        if let Some(target) = target {
            std::os::unix::fs::symlink(target, link).unwrap();
        }
        let plan = stage.command(ALWAYS);
        let script = "mount --bind \"$0\" /etc && mount --bind \"$1\" /usr/share/zoneinfo \
                      && shift && exec \"$@\" --json";
        let mut command = Command::new(&unshare);
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command
            .args([&etc, &zoneinfo])
            .arg(plan.get_program())
            .args(plan.get_args());
        command.envs(
            plan.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        command
            .env_remove("TZ")
            .envs(variable.map(|zone| ("TZ", zone)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let opens = plan["windows"][0]["opens_local"]
            .as_str()
            .unwrap()
            .to_owned();
        opens[19..].to_owned()
    };
    let hawaii = "/usr/share/zoneinfo/US/Hawaii";
    assert_eq!(opens(Some(hawaii), None), "-10:00");
    assert_eq!(
        opens(Some("../usr/share/zoneinfo/US/Arizona"), None),
        "-07:00"
    );
    assert_eq!(opens(Some(hawaii), Some("US/Arizona")), "-07:00");
    assert_eq!(opens(Some(hawaii), Some(":US/Arizona")), "-07:00");
    // As every program of the host takes it.
    assert_eq!(opens(Some("/usr/share/zoneinfo/Mars/Base"), None), "+00:00");
    assert_eq!(opens(None, None), "+00:00");
}

#[test]
fn not_bad_enough_or_as_good_as_can_be() {
    let stage = support::require!(Stage::new(&[]));
    let fine = stage.image("fine.raw", 8 * MIB, 500);
    stage.left_alone(&fine, &always(FSR), "below_severity", "below warning");
    // Every second block is a hole: nothing can be put together.
    let holes = stage.bed.path().join("holes.raw");
    guest::alternate_blocks(&holes, 2000);
    stage.left_alone(&holes, &always(FSR), "near_ideal", "2,000 extents");
    stage.left_alone(&holes, &always(FSR), "near_ideal", "1,999 lie behind holes");
}

/// Longer maps than this are not loaded for a plan.
const SHORT_MAPS: &str = "[sampling]\nmap_max_extents = 1000\n";

/// The three numbers of an estimate.
fn between(value: &Value) -> [u64; 3] {
    ["low", "likely", "high"].map(|key| value[key].as_u64().unwrap())
}

#[test]
fn holes_are_sampled_where_the_map_is_loaded() {
    let extents = 100_000;
    let bed = support::require!(Bed::fragmented(extents));
    let stage = Stage { bed };
    let image = stage.bed.path().join("vm.img");
    let config = always(&format!(
        "{SHORT_MAPS}[defrag]\nmax_io_pressure = 100\nmax_swap_stall = \"10m\"\nkeep_free = \"0%\"\n"
    ));
    // Nobody has it open: to load the map would be the price.
    let planned = stage.planned(&image, &config);
    assert_eq!(planned["outlook"], Value::Null, "{planned}");
    assert_ne!(planned["why_not"]["code"], "little_gain", "{planned}");
    let output = stage.command(&config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not looked at"), "{text}");
    let open = File::open(&image).unwrap();
    stage.left_alone(&image, &config, "little_gain", "lie behind holes");
    let outlook = &stage.planned(&image, &config)["outlook"];
    let looked_at = outlook["looked_at"].as_u64().unwrap();
    assert!((20_000..60_000).contains(&looked_at), "{outlook}");
    assert_eq!(between(&outlook["joins"])[..2], [0, 0], "{outlook}");
    assert!(between(&outlook["joins"])[2] < extents / 50, "{outlook}");
    drop(open);
}

#[test]
fn a_sample_agrees_with_the_whole_map() {
    let stage = support::require!(Stage::new(&["-m", "reflink=1"]));
    let image = stage.bed.path().join("vm.raw");
    // Half of the file in pieces that touch, the other half in pieces between holes.
    guest::random_direct_writes(&image, 200 * MIB, 51_200);
    let file = File::options().write(true).open(&image).unwrap();
    for block in 0..12_000 {
        let at = block * 2 * guest::BLOCK;
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, at, guest::BLOCK).unwrap();
    }
    stage.bed.sync();
    let config = always("[defrag]\nmax_io_pressure = 100\n");
    let whole = stage.planned(&image, &config);
    let truth = between(&whole["outlook"]["joins"]);
    assert!(truth[0] > 5_000 && truth[0] == truth[2], "{whole}");
    let sampled = stage.planned(&image, &format!("{SHORT_MAPS}{config}"));
    assert_eq!(sampled["run"]["engine"], "online", "{sampled}");
    let [low, likely, high] = between(&sampled["run"]["gain_extents"]);
    assert!(low <= truth[1] && truth[1] <= high, "{sampled} {whole}");
    assert!(low <= likely && likely <= high && high - low < truth[1] / 2);
    let holes = between(&sampled["outlook"]["holes"]);
    let true_holes = between(&whole["outlook"]["holes"])[1];
    assert!(
        holes[0] <= true_holes && true_holes <= holes[2],
        "{sampled}"
    );
    drop(file);
}

#[test]
fn an_image_that_is_marked() {
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    for (flag, code, words) in [
        ("i", "immutable", "is immutable"),
        ("a", "append_only", "can only be appended to"),
        ("f", "no_defrag", "is marked as not to be defragmented"),
    ] {
        let chattr = |sign: &str| {
            let command = format!("chattr {sign}{flag}");
            let mut xfs_io = Command::new("xfs_io");
            let status = xfs_io.args(["-r", "-c", &command]).arg(&image).status();
            assert!(status.unwrap().success());
        };
        chattr("+");
        stage.left_alone(&image, &always(FSR), code, words);
        chattr("-");
    }
    stage.runs(&image, &always(FSR), "xfs_fsr");
}

#[test]
fn a_swap_file() {
    support::require!(tools::have("mkswap"));
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    let on = || {
        tools::run(Command::new("mkswap").arg(&image))?;
        tools::run(Command::new("swapon").arg(&image))
    };
    support::require!(on());
    let swap = Swap(&image);
    stage.left_alone(&image, &always(FSR), "swap_file", "swap file");
    drop(swap);
    stage.runs(&image, &always(FSR), "xfs_fsr");
}

/// Swap space, until it goes out of scope.
struct Swap<'p>(&'p Path);

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        let off = Command::new("swapoff").arg(self.0).status();
        assert!(off.is_ok_and(|status| status.success()));
    }
}

#[test]
fn another_file_system() {
    let bed = support::require!(Bed::ext4());
    let stage = Stage { bed };
    let image = stage.image("vm.raw", 64 * MIB, 8000);
    stage.left_alone(&image, &always(FSR), "not_xfs", "on ext4; only XFS");
}

#[test]
fn paused() {
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    fs::create_dir(stage.beside("state")).unwrap();
    fs::write(stage.beside("state/paused"), "").unwrap();
    stage.left_alone(&image, &always(FSR), "paused", "fragwatch resume");
    fs::remove_file(stage.beside("state/paused")).unwrap();
    stage.runs(&image, &always(FSR), "xfs_fsr");
}

#[test]
fn a_vm_uses_it() {
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "reflink=0"]));
    let vm = support::require!(Vm::named("db-1").start(&image));
    let user = format!("in use by VM db-1 (pid {})", vm.id());
    stage.left_alone(&image, &always(FSR), "in_use", &user);
    let both = "[defrag]\nmax_io_pressure = 100\n";
    let neither = format!("{user}, and not online: the file system has no reflink");
    stage.left_alone(&image, &always(both), "in_use", &neither);
    drop(vm);
    stage.runs(&image, &always(both), "xfs_fsr");
}

#[test]
fn a_vm_that_online_can_work_under() {
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "reflink=1"]));
    let vm = support::require!(Vm::named("db-1").start(&image));
    let both = "[defrag]\nmax_io_pressure = 100\n";
    stage.runs(&image, &always(both), "online");
    drop(vm);
    stage.runs(&image, &always(both), "xfs_fsr");
}

#[test]
fn a_reflink_copy() {
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "reflink=1"]));
    let copy = stage.bed.path().join("copy.raw");
    guest::reflink_copy(&image, &copy);
    stage.left_alone(&image, &always(FSR), "shares_blocks", "reflink copy");
}

#[test]
fn too_little_space() {
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    let greedy = always(&format!("{FSR}keep_free = \"90%\"\n"));
    let none = rustix::fs::FallocateFlags::empty();
    // So that so many hundredths are left.
    let fill = |left: u64| {
        let size = rustix::fs::statvfs(stage.bed.path()).unwrap();
        let bytes = (size.f_bavail - size.f_blocks / 100 * left) * size.f_frsize;
        let filler = File::create(stage.bed.path().join(format!("filler-{left}")));
        rustix::fs::fallocate(filler.unwrap(), none, 0, bytes).unwrap();
    };
    fill(80);
    stage.left_alone(&image, &greedy, "no_space", "not enough free space (needs ");
    stage.runs(&image, &always(FSR), "xfs_fsr");
    fill(4);
    stage.left_alone(&image, &always(FSR), "almost_full", "full; above 95%");
}

#[test]
fn a_swap_that_would_stall_readers() {
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "rmapbt=1"]));
    let strict = always(&format!("{FSR}max_swap_stall = \"1ms\"\n"));
    stage.left_alone(&image, &strict, "swap_stall", "would stall readers for");
    let both = "[defrag]\nmax_io_pressure = 100\nmax_swap_stall = \"1ms\"\n";
    stage.runs(&image, &always(both), "online");
}

#[test]
fn no_reflink() {
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "reflink=0"]));
    let online = "[defrag]\nengines = [\"online\"]\nmax_io_pressure = 100\n";
    stage.left_alone(&image, &always(online), "no_reflink", "has no reflink");
}

#[test]
fn what_does_not_fit_into_the_window() {
    let stage = support::require!(Stage::new(&[]));
    let small = stage.image("small.raw", 16 * MIB, 4096);
    let other = stage.image("other.raw", 15 * MIB, 3840);
    let large = stage.image("large.raw", 100 * MIB, 25_600);
    // 100 MiB at 512 KiB/s are 200 s, 16 MiB are 32 s.
    let minute = ALWAYS.replace("24h", "1m");
    let slow = format!("{FSR}bandwidth = \"1MiB/s\"\nmax_swap_stall = \"10m\"\n{minute}");
    let words = "would not finish before the window closes at ";
    stage.left_alone(&large, &slow, "would_not_finish", words);
    let (first, second) = match stage.planned(&small, &slow)["run"].is_null() {
        true => (&other, &small),
        false => (&small, &other),
    };
    stage.runs(first, &slow, "xfs_fsr");
    stage.left_alone(second, &slow, "no_turn", "1 image before it");
}

#[test]
fn others_wait_for_the_disks() {
    if !Path::new("/proc/pressure/io").exists() {
        let why = NotHere::because("the kernel does not tell of pressure");
        support::require!(Err::<(), _>(why));
    }
    support::require!(tools::have("fio"));
    let (stage, image) = support::require!(Stage::fragmented(&[]));
    // On a real disk, and by those who wait for each write.
    let disk = support::require!(Plan::of("xfs").place(Place::Disk).make());
    let mut fio = Command::new("fio");
    fio.args(["--name=wait", "--rw=randwrite", "--bs=4k", "--fsync=1"])
        .args(["--size=64m", "--time_based", "--runtime=300"])
        .args(["--thread", "--numjobs=4"])
        .arg(format!("--directory={}", disk.path().display()))
        .stdout(std::process::Stdio::null());
    let load = support::child::Child::spawn(&mut fio).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let strict = always("[defrag]\nengines = [\"xfs_fsr\"]\nmax_io_pressure = 1\n");
    loop {
        let planned = stage.planned(&image, &strict);
        if planned["why_not"]["code"] == "io_pressure" {
            let text = planned["why_not"]["text"].as_str().unwrap();
            assert!(text.starts_with("I/O pressure too high ("), "{text}");
            break;
        }
        // In a control group of our own we do not wait for ourselves.
        let ours = fs::read_to_string("/proc/self/cgroup").unwrap();
        let ours = ours
            .lines()
            .any(|line| line.starts_with("0::/") && line.len() > 4);
        if ours && Instant::now() > deadline {
            support::require!(Err::<(), _>(NotHere::because(
                "the load is in our own group"
            )));
        }
        assert!(Instant::now() < deadline, "{planned}");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(load);
    stage.runs(&image, &always(FSR), "xfs_fsr");
}

#[test]
fn people_read_it_in_eighty_columns() {
    support::require!(tools::have("script"));
    let (stage, image) = support::require!(Stage::fragmented(&["-m", "reflink=0"]));
    let vm = support::require!(Vm::named("db-1").start(&image));
    let plan = stage.command(&always("[defrag]\nmax_io_pressure = 100\n"));
    let words = plan.get_args().map(|it| it.to_str().unwrap().to_owned());
    let words: Vec<String> = std::iter::once(plan.get_program().to_str().unwrap().to_owned())
        .chain(words)
        .collect();
    let line = format!("stty cols 80; {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--command", &line, "/dev/null"]);
    for (name, value) in plan.get_envs() {
        value
            .into_iter()
            .for_each(|value| _ = script.env(name, value));
    }
    let output = script.stdin(std::process::Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let why: Vec<&str> = text.lines().filter(|line| line.contains("db-1")).collect();
    assert_eq!(why.len(), 1, "{text}");
    // The commands that follow are to be copied whole.
    for line in text.lines().take_while(|line| !line.starts_with("By hand")) {
        assert!(line.trim_end().chars().count() <= 80, "{text}");
    }
    drop(vm);
}
