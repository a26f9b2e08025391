//! What `fragwatch scan` says, and what it should say by the word of others.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::CWD;
use rustix::mount::{
    MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, move_mount, open_tree, unmount,
};
use serde_json::Value;

use super::skip::{Here, NotHere};
use super::{daemon, tools};

/// What a command wrote, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit status; nothing if a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Runs a command to its end.
    pub fn by(command: &mut Command) -> Said {
        let shown = format!("{command:?}");
        let output = command.output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.unwrap_or_else(|e| panic!("{shown}: {e}"));
        let text = |bytes| String::from_utf8(bytes).expect("it writes UTF-8, whatever names hold");
        Said {
            code: status.code(),
            out: text(stdout),
            err: text(stderr),
        }
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> Report {
        match serde_json::from_str(&self.out) {
            Ok(value) => Report(value),
            Err(e) => panic!("{e}: {self:?}"),
        }
    }
}

/// `fragwatch scan` with the configuration that is delivered, which sets every key to its default.
pub fn scan(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = daemon::fragwatch();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/fragwatch.toml");
    command.arg("--config").arg(config).arg("scan");
    command.args(arguments);
    command
}

/// What is found at `paths`, files of any size, when all of it can be read.
#[track_caller]
pub fn report(paths: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Report {
    whole(scan(["--json", "--min-size", "0B"]).args(paths))
}

/// What a command reports that must succeed.
#[track_caller]
pub fn whole(command: &mut Command) -> Report {
    let said = Said::by(command);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let report = said.json();
    assert_eq!(report.0["errors"].as_array().map(Vec::len), Some(0));
    report
}

/// The JSON of a scan.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// The images, worst first.
    #[track_caller]
    pub fn images(&self) -> &[Value] {
        self.0["images"].as_array().expect("a list of images")
    }

    /// The image at `path`.
    #[track_caller]
    pub fn image(&self, path: &Path) -> &Value {
        let at = |image: &&Value| image["path"].as_str().map(Path::new) == Some(path);
        let found = self.images().iter().find(at);
        found.unwrap_or_else(|| panic!("no {} in {:#}", path.display(), self.0))
    }

    /// The paths of all images, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        let path = |image: &Value| PathBuf::from(image["path"].as_str().expect("a path"));
        let mut paths: Vec<_> = self.images().iter().map(path).collect();
        paths.sort();
        paths
    }

    /// What could not be read, and why.
    #[track_caller]
    pub fn errors(&self) -> Vec<(&str, &str)> {
        let errors = self.0["errors"].as_array().expect("a list of errors");
        errors
            .iter()
            .map(|error| {
                let path = error["path"].as_str().expect("a path");
                (path, error["error"].as_str().expect("a reason"))
            })
            .collect()
    }
}

/// The shape of an extent map, from what `filefrag -v` lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub extents: u64,
    pub fragments: u64,
    pub holes: u64,
    pub unwritten: u64,
    pub shared: u64,
    pub delayed: u64,
    pub longest: u64,
    /// Extents by the largest power of two that they are not shorter than.
    pub histogram: BTreeMap<u64, u64>,
}

impl Shape {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> Shape {
        let mut shape = Shape::default();
        let mut end = 0;
        let mut end_on_disk = None;
        for extent in tools::filefrag_extents(path) {
            let is = |flag: &str| u64::from(extent.flags.iter().any(|f| f == flag));
            let placed = is("delalloc") == 0 && is("unknown_loc") == 0;
            shape.extents += 1;
            shape.holes += u64::from(extent.logical != end);
            shape.fragments += u64::from(!placed || end_on_disk != Some(extent.physical));
            shape.unwritten += is("unwritten") * extent.length;
            shape.shared += is("shared") * extent.length;
            shape.delayed += u64::from(!placed) * extent.length;
            shape.longest = shape.longest.max(extent.length);
            let mut class = 1;
            while class <= extent.length / 2 {
                class *= 2;
            }
            *shape.histogram.entry(class).or_default() += 1;
            end = extent.logical + extent.length;
            end_on_disk = placed.then_some(extent.physical + extent.length);
        }
        let size = fs::metadata(path).expect("the file is there").size();
        shape.holes += u64::from(size > end);
        shape
    }

    /// Of the map of an image in a report.
    #[track_caller]
    pub fn reported(image: &Value) -> Shape {
        let map = &image["map"];
        assert_eq!(map["complete"], true, "{image:#}");
        let number = |key: &str| map[key].as_u64().unwrap_or_else(|| panic!("{image:#}"));
        let classes = map["histogram"].as_array().expect("a histogram");
        let class = |class: &Value| {
            let bound = |key: &str| class[key].as_u64().expect("a bound");
            assert_eq!(2 * bound("from_bytes"), bound("to_bytes"));
            (bound("from_bytes"), bound("extents"))
        };
        Shape {
            extents: number("extents"),
            fragments: number("fragments"),
            holes: number("holes"),
            unwritten: number("unwritten_bytes"),
            shared: number("shared_bytes"),
            delayed: number("delayed_bytes"),
            longest: number("longest_extent_bytes"),
            histogram: classes.iter().map(class).collect(),
        }
    }
}

/// What `act` returns, and what others see before and after it: repeated until that is the same.
/// ext4 joins extents in memory that are apart on disk, and forgets some of them when memory is
/// short: its count of a file that nobody touches can change by a few.
pub fn undisturbed<T: PartialEq, R>(look: impl Fn() -> T, act: impl Fn() -> R) -> (T, R) {
    for _ in 0..20 {
        let before = look();
        let result = act();
        if look() == before {
            return (before, result);
        }
    }
    panic!("the file system shows the same files otherwise each time");
}

/// Buffers of metadata that an XFS has looked for since it was mounted. Loading an extent map takes
/// one for each block of about 250 records, a count takes none. In contrast to the memory of the
/// kernel, nothing else on the machine changes it.
pub fn metadata_buffers(loop_device: &str) -> u64 {
    let stats = format!("/sys/fs/xfs/{loop_device}/stats/stats");
    let text = fs::read_to_string(stats).expect("XFS keeps statistics");
    let line = text.lines().find_map(|line| line.strip_prefix("buf "));
    let gets = line.and_then(|numbers| numbers.split(' ').next());
    gets.and_then(|n| n.parse().ok())
        .expect("buf: xb_get first")
}

/// Nodes of loaded extent maps that the kernel holds, and whatever else of it takes 256 bytes.
/// In contrast to `SUnreclaim` it falls as soon as one of them is given back.
pub fn map_nodes() -> u64 {
    let slabs = fs::read_to_string("/proc/slabinfo").expect("root may read it");
    let caches = slabs.lines().filter_map(|line| {
        // kmalloc-256, kmalloc-rnd-03-256: name, active objects, …
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        let fits = name.starts_with("kmalloc-") && name.ends_with("-256");
        fits.then(|| fields.next()?.parse::<u64>().ok())?
    });
    caches.sum()
}

/// Waits until the kernel has given back what it was about to: extent maps of inodes that are gone
/// wait for the end of whatever other processors are at.
pub fn rcu_barrier() {
    // Since Linux 5.17. Without it a test may see less memory given back, which is then told.
    let _ = fs::write("/sys/module/rcutree/parameters/do_rcu_barrier", "1");
}

/// A program copied to where everybody can run it. By a process of its own: while this one has the
/// copy open for writing, a child that another thread starts would inherit it, and who is written
/// to cannot be run (ETXTBSY).
pub fn copy_program(program: impl AsRef<Path>, to: &Path) {
    let mut install = Command::new("install");
    install.arg("--mode=755").arg(program.as_ref()).arg(to);
    tools::run(&mut install).expect("the bed can be written");
}

/// What `command` and its children do to the file at `path`: the system calls that name it through
/// a descriptor, and those that read, without their results.
pub fn traced(command: &Command, path: &Path, log: &Path) -> Vec<String> {
    let mut strace = Command::new("strace");
    strace
        .args(["--follow-forks", "--decode-fds=path", "-s0", "-o"])
        .arg(log)
        .arg("--trace=ioctl,read,pread64,readv,preadv,preadv2,mmap,sendfile,copy_file_range,splice")
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    let said = Said::by(&mut strace);
    assert_eq!(said.code, Some(0), "{said:?}");
    let log = fs::read_to_string(log).expect("strace writes");
    let name = format!("<{}>", path.display());
    let calls = log.lines().filter(|line| line.contains(&name));
    calls
        .map(|line| line.split_once(' ').expect("process and call").1.trim())
        .map(|call| match call.split_once('(') {
            Some(("ioctl", arguments)) => {
                let request = arguments.split(", ").nth(1).expect("a request");
                // strace cuts a call here when another thread's comes between.
                let request = request.split(" <unfinished").next().expect("a part");
                request.to_owned()
            }
            _ => call.split('(').next().expect("a name").to_owned(),
        })
        .collect()
}

/// A place made to show another.
#[derive(Debug)]
pub struct BindMount(PathBuf);

impl BindMount {
    /// Shows `what` at `place`, which is made if need be. Lies in a bed, so that the janitor knows.
    pub fn new(what: &Path, place: &Path) -> Here<BindMount> {
        fs::create_dir_all(place).expect("the bed can be written");
        mount_bind(what, place)
            .map_err(|e| NotHere::because(format_args!("{}: {e}", place.display())))?;
        Ok(BindMount(place.to_owned()))
    }

    /// Has it at `place` as well, but beneath what is mounted there. Goes away after that.
    pub fn beneath(what: &Path, place: &Path) -> Here<BindMount> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, what, flags).map_err(NotHere::because)?;
        let beneath = MoveMountFlags::MOVE_MOUNT_BENEATH | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, "", CWD, place, beneath)
            .map_err(|e| NotHere::because(format_args!("beneath {}: {e}", place.display())))?;
        Ok(BindMount(place.to_owned()))
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        if let Err(e) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("{}: {e}", self.0.display());
        }
    }
}

/// Writes a configuration that looks for files of any size, with further lines, of `[images]` first.
pub fn config(dir: &Path, lines: &str) -> PathBuf {
    let path = dir.join("fragwatch.toml");
    fs::write(&path, format!("[images]\nmin_size = \"0B\"\n{lines}")).expect("it can be written");
    path
}

/// `fragwatch scan` with that configuration.
pub fn scan_with(config: &Path) -> Command {
    let mut command = daemon::fragwatch();
    command.arg("--config").arg(config).args(["scan", "--json"]);
    command
}
