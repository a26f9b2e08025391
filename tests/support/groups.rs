//! Control groups: one for the program under test, one beside it for others, who wait for I/O.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::child::Child;
use super::rundir::{self, Place};
use super::skip::{Here, NotHere};

/// However busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// One of these tests at a time: the load of one is what another would wait for.
static ALONE: Mutex<()> = Mutex::new(());

/// Two control groups beside each other. They go when it does, and what is in them is killed before.
pub struct Groups {
    root: PathBuf,
    /// cgroup v2, if it was not mounted.
    mounted: Option<PathBuf>,
    pub others: Vec<Child>,
    _alone: MutexGuard<'static, ()>,
}

impl Groups {
    pub fn new() -> Here<Groups> {
        if !Path::new("/proc/pressure/io").exists() {
            return Err(NotHere::because("the kernel does not tell of pressure"));
        }
        let (hierarchy, mounted) = hierarchy()?;
        sweep(&hierarchy);
        let pid = std::process::id();
        let start = rundir::start_time(pid).expect("it runs");
        let root = hierarchy.join(format!("fragwatch-test.{pid}.{start}"));
        let groups = Groups {
            root,
            mounted,
            others: Vec::new(),
            _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
        };
        for group in [&groups.root, &groups.own(), &groups.beside()] {
            fs::create_dir(group).map_err(NotHere::because)?;
        }
        if !groups.beside().join("io.pressure").exists() {
            return Err(NotHere::because("the groups do not tell of pressure"));
        }
        Ok(groups)
    }

    pub fn own(&self) -> PathBuf {
        self.root.join("own")
    }

    pub fn beside(&self) -> PathBuf {
        self.root.join("others")
    }

    /// One of the others.
    pub fn start(&mut self, command: &Command) {
        let mut command = within(&self.beside(), command);
        command.stdout(Stdio::null());
        self.others.push(Child::spawn(&mut command).unwrap());
    }

    /// What the others wait, by the kernel.
    pub fn pressure(&self) -> f32 {
        let text = fs::read_to_string(self.beside().join("io.pressure")).unwrap();
        let field = text
            .split([' ', '\n'])
            .find_map(|it| it.strip_prefix("avg10="));
        field.unwrap().parse().unwrap()
    }

    pub fn await_pressure(&self, is: impl Fn(f32) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self.pressure()) {
            assert!(Instant::now() < deadline, "{}", self.pressure());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.others.clear();
        let deadline = Instant::now() + Duration::from_secs(10);
        for group in [self.own(), self.beside(), self.root.clone()] {
            // A process that was killed is in its group until the kernel is done with it.
            while fs::remove_dir(&group).is_err() && group.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Some(mounted) = &self.mounted {
            let _ = unmount(mounted, UnmountFlags::DETACH);
            rundir::remove(mounted);
        }
    }
}

/// Where cgroup v2 is mounted, or is now.
fn hierarchy() -> Here<(PathBuf, Option<PathBuf>)> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(NotHere::because)?;
    let mut mounts = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    if let Some(known) = mounts.find(|fields| fields.get(2) == Some(&"cgroup2")) {
        return Ok((PathBuf::from(known[1]), None));
    }
    let point = rundir::new_dir(Place::Disk).map_err(NotHere::because)?;
    mount(
        "cgroup2",
        &point,
        "cgroup2",
        MountFlags::empty(),
        None::<&CStr>,
    )
    .map_err(NotHere::because)?;
    Ok((point.clone(), Some(point)))
}

/// Removes the groups of tests that were killed.
fn sweep(hierarchy: &Path) {
    for entry in fs::read_dir(hierarchy).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let mut parts = name.rsplit('.');
        let (start, pid) = (parts.next(), parts.next());
        let owner = pid.and_then(|pid| rundir::start_time(pid.parse().ok()?));
        let is_alive = owner.map(|it| it.to_string()).as_deref() == start;
        if name.starts_with("fragwatch-test.") && !is_alive {
            for group in ["own", "others", ""] {
                let _ = fs::remove_dir(entry.path().join(group));
            }
        }
    }
}

/// The command, started in a group.
pub fn within(group: &Path, command: &Command) -> Command {
    let mut within = Command::new("sh");
    within.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]);
    within.arg(group.join("cgroup.procs"));
    within.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => within.env(name, value),
            None => within.env_remove(name),
        };
    }
    within
}
