//! One pass over all images: each file system is surveyed by its own worker, all in parallel.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use super::owners::Owners;
use super::protocol::{Fault, PassedOver, Reply, Request, Root, SurveyRequest};
use super::worker::{CallError, Listener, StallFlag, Worker};
use crate::config::settings::Settings;
use crate::discover::mounts::{FilesystemScope, Mount, MountTable};
use crate::discover::owner::{Holders, OwnerSearch};
use crate::discover::paths::literal_part;
use crate::discover::rules::Selection;
use crate::discover::watch::News;
use crate::model::path::PlainPath;
use crate::model::{DeviceNumber, Filesystem, ImageId, Owner, Sample};
use crate::sys;

/// Where to search, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Where the search begins.
    pub roots: Vec<Root>,
    /// Which files are images.
    pub selection: Selection,
    /// Maximum number of files and directories in the search of one root.
    pub limit: u32,
    /// Deadline for one step of a probe.
    pub probe_timeout: Duration,
}

impl Scope {
    /// From the settings.
    pub fn configured(settings: &Settings) -> Self {
        let images = &settings.images;
        let roots = images.paths.iter().map(PathBuf::from).map(Root::configured);
        Scope {
            roots: roots.collect(),
            selection: Selection {
                include: images.include.clone(),
                exclude: images.exclude.clone(),
                min_size: images.min_size,
            },
            limit: images.limit,
            probe_timeout: settings.sampling.probe_timeout,
        }
    }
}

/// What a sweep finds, as it finds it.
#[derive(Debug)]
pub enum Event {
    Filesystem(Filesystem),
    Image(Box<Counted>),
    Fault(Fault),
    PassedOver(PassedOver),
    /// The searched directories are watched; if not all of them, the reason.
    Watched(Option<String>),
    /// The survey of a file system ended; repeated if more of that file system is found later.
    Surveyed {
        mount: PathBuf,
        result: Result<(), CallError>,
        /// Whether the sweep continues with other file systems.
        others: bool,
    },
}

/// An image that was counted.
#[derive(Debug)]
pub struct Counted {
    /// The count.
    pub sample: Sample,
    /// How long counting took.
    pub took: Duration,
    /// The processes that had it open when the sweep began; `None` if that could not be determined.
    pub owner: Option<Owner>,
}

/// Called with each event and its file system.
pub type OnEvent<'a> = dyn FnMut(DeviceNumber, Event) + Send + 'a;

/// The workers of all file systems met so far.
#[derive(Debug)]
pub struct WorkerPool {
    proc: PathBuf,
    owners: Owners,
    slots: BTreeMap<DeviceNumber, WorkerSlot>,
    listener: Option<Listener>,
    sweeps: u64,
}

#[derive(Debug)]
struct WorkerSlot {
    worker: Arc<Mutex<Worker>>,
    flag: StallFlag,
    mount: Mount,
    /// Whether the last sweep surveyed it.
    met: bool,
}

impl WorkerPool {
    /// No workers yet. `proc` is the mount point of procfs.
    pub fn new(proc: &Path) -> Self {
        WorkerPool {
            proc: proc.to_owned(),
            owners: Owners::new(OwnerSearch::new(proc, Path::new("/run"))),
            slots: BTreeMap::new(),
            listener: None,
            sweeps: 0,
        }
    }

    /// Has sweeps watch their directories; reports changed names. Call before the first sweep.
    pub fn listen(&mut self) -> mpsc::UnboundedReceiver<News> {
        let (listener, news) = mpsc::unbounded_channel();
        self.listener = Some(listener);
        news
    }

    /// The current mount table. Fails if procfs cannot be read.
    pub fn mounts(&self) -> io::Result<MountTable> {
        Ok(MountTable::new(sys::mounts::read(&self.proc)?))
    }

    /// The worker of a file system; created if there is none yet.
    pub fn worker(&mut self, mount: &Mount) -> Arc<Mutex<Worker>> {
        let slot = self.slots.entry(mount.device).or_insert_with(|| {
            let worker = Worker::with_listener(self.listener.clone());
            WorkerSlot {
                flag: worker.flag(),
                worker: Arc::new(Mutex::new(worker)),
                mount: mount.clone(),
                met: true,
            }
        });
        Arc::clone(&slot.worker)
    }

    /// The worker of a file system that the last sweep surveyed, unless it hangs.
    pub fn answering_worker(&self, device: DeviceNumber) -> Option<(Mount, Arc<Mutex<Worker>>)> {
        let slot = self.slots.get(&device)?;
        let answers = slot.met && slot.flag.stalled_for().is_none();
        answers.then(|| (slot.mount.clone(), Arc::clone(&slot.worker)))
    }

    /// Every file system that the last sweep surveyed, with its stall flag.
    pub fn stalls(&self) -> impl Iterator<Item = (&Mount, StallFlag)> {
        let met = self.slots.values().filter(|slot| slot.met);
        met.map(|slot| (&slot.mount, slot.flag.clone()))
    }

    /// Finds and counts all images of `scope`. A file system that hangs costs one deadline once and
    /// does not delay the others. Fails if the mount table cannot be read.
    pub async fn sweep(&mut self, scope: &Scope, on_event: &mut OnEvent<'_>) -> io::Result<()> {
        let mounts = self.mounts()?;
        let holders = self.owners.look().await;
        self.sweeps += 1;
        let (replies, messages) = mpsc::unbounded_channel();
        let mut sweep = Sweep {
            pool: self,
            scope,
            mounts,
            holders,
            waiting: HashMap::new(),
            running: HashSet::new(),
            met: HashSet::new(),
            roots: HashSet::new(),
            images: HashSet::new(),
            replies,
            messages,
        };
        for root in &scope.roots {
            sweep.add_root(root.clone(), on_event);
        }
        sweep.run(on_event).await;
        let met = sweep.met;
        self.slots.retain(|device, slot| {
            slot.met = met.contains(device);
            // One that hangs is kept: for the same file system a new one would hang too.
            slot.met || slot.flag.stalled_for().is_some()
        });
        Ok(())
    }
}

struct Sweep<'a> {
    pool: &'a mut WorkerPool,
    scope: &'a Scope,
    mounts: MountTable,
    holders: Option<Holders>,
    /// Roots waiting for the current survey of their file system to end.
    waiting: HashMap<DeviceNumber, Vec<Root>>,
    running: HashSet<DeviceNumber>,
    met: HashSet<DeviceNumber>,
    roots: HashSet<Root>,
    images: HashSet<ImageId>,
    replies: mpsc::UnboundedSender<(DeviceNumber, SurveyMessage)>,
    messages: mpsc::UnboundedReceiver<(DeviceNumber, SurveyMessage)>,
}

enum SurveyMessage {
    Reply(Reply),
    End(Result<(), CallError>),
}

impl Sweep<'_> {
    fn add_root(&mut self, root: Root, on_event: &mut OnEvent<'_>) {
        let Some(mount) = self.mount_of(&root) else {
            return;
        };
        let device = mount.device;
        if mount.is_pseudo() {
            let error = format!("lies on {}, which holds no disk images", mount.type_name);
            let path = root.path;
            return on_event(device, Event::Fault(Fault { path, error }));
        }
        if self.roots.insert(root.clone()) {
            self.waiting.entry(device).or_default().push(root);
        }
    }

    fn mount_of(&self, root: &Root) -> Option<&Mount> {
        match root.glob {
            true => self.mounts.of(&literal_part(&root.path)),
            false => self.mounts.of(&root.path),
        }
    }

    async fn run(&mut self, on_event: &mut OnEvent<'_>) {
        loop {
            self.launch();
            if self.running.is_empty() {
                return;
            }
            // Never closed: this struct holds a sender.
            let Some((device, message)) = self.messages.recv().await else {
                return;
            };
            match message {
                SurveyMessage::Reply(reply) => self.take(device, reply, on_event),
                SurveyMessage::End(result) => {
                    self.running.remove(&device);
                    let mount = self.mounts.principal(device);
                    let mount = mount.map(|mount| mount.point.clone()).unwrap_or_default();
                    let others = !(self.running.is_empty() && self.waiting.is_empty());
                    let event = Event::Surveyed {
                        mount,
                        result,
                        others,
                    };
                    on_event(device, event);
                }
            }
        }
    }

    /// Starts a survey on every file system with waiting roots and no running survey.
    fn launch(&mut self) {
        let idle = |device: &DeviceNumber| !self.running.contains(device);
        let ready: Vec<_> = self.waiting.keys().copied().filter(idle).collect();
        for device in ready {
            let mount = self.mounts.principal(device).cloned();
            let Some((roots, mount)) = self.waiting.remove(&device).zip(mount) else {
                continue;
            };
            let scope = FilesystemScope {
                mounts: self.mounts.clone(),
                device,
            };
            let holders = self.holders.iter();
            let held: Vec<_> = holders
                .flat_map(|holders| holders.held_on(device))
                .collect();
            let path = |(path, _): &(&Path, _)| PlainPath((*path).to_owned());
            let request = Request::Survey(SurveyRequest {
                held: held.iter().map(path).collect(),
                held_inodes: held.iter().filter_map(|(_, inode)| *inode).collect(),
                watch: self.pool.listener.as_ref().map(|_| self.pool.sweeps),
                selection: self.scope.selection.clone(),
                limit: self.scope.limit,
                mount: mount.clone(),
                scope,
                roots,
            });
            self.running.insert(device);
            self.met.insert(device);
            let worker = self.pool.worker(&mount);
            let replies = self.replies.clone();
            let deadline = self.scope.probe_timeout;
            tokio::spawn(async move {
                // Sending fails only when the sweep is over and the reply no longer needed.
                let send = |message| drop(replies.send((device, message)));
                let on_reply = |reply| send(SurveyMessage::Reply(reply));
                let result = match tokio::time::timeout(deadline, worker.lock()).await {
                    Ok(mut worker) => worker.call(&request, deadline, on_reply).await,
                    Err(_) => Err(CallError::Busy),
                };
                send(SurveyMessage::End(result));
            });
        }
    }

    fn take(&mut self, device: DeviceNumber, reply: Reply, on_event: &mut OnEvent<'_>) {
        let event = match reply {
            Reply::Filesystem(filesystem) => Event::Filesystem(filesystem),
            // Found twice if two configured paths lead there in two surveys.
            Reply::Image(sample, _) if !self.images.insert(sample.id) => return,
            Reply::Image(sample, took) => {
                let holders = self.holders.as_ref();
                Event::Image(Box::new(Counted {
                    owner: holders.map(|holders| holders.owner(&sample, device)),
                    sample: *sample,
                    took,
                }))
            }
            Reply::Fault(fault) => Event::Fault(fault),
            Reply::Watched(refusal) => Event::Watched(refusal),
            Reply::PassedOver(passed_over) => Event::PassedOver(passed_over),
            Reply::Elsewhere(root) => return self.add_crossing(root, on_event),
            // Not of a survey.
            _ => return,
        };
        on_event(device, event);
    }

    /// Searches file systems found inside a directory; a pseudo file system is no fault there.
    fn add_crossing(&mut self, root: Root, on_event: &mut OnEvent<'_>) {
        let mount = self.mount_of(&root);
        if !mount.is_some_and(|mount| mount.is_pseudo() && mount.point == root.path) {
            self.add_root(root, on_event);
        }
    }
}
