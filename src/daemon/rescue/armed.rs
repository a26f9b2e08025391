//! Starts and reloads the fast side, and tracks how far it is armed.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;
use tracing::{debug, error, info, warn};

use crate::config::Settings;
use crate::klog::Rules;
use crate::klog::kmsg::{KMSG, Kmsg};
use crate::model::{Monotonic, RuleDefinition};
use crate::rescue::settings::FastSettings;
use crate::rescue::thread::{FastSide, Setup, StartReport};
use crate::rescue::{LadderSettings, Watchdog};
use crate::serve::parts::State;
use crate::sys::realtime::{SchedPolicy, lock_no_more};

/// How far back the kernel log is read at the start, so that a restart during an incident misses
/// nothing. If it is opened later, old lines must not act.
const LOOK_BACK: Duration = Duration::from_secs(10);

/// The fast side and its settings, so that a reload changes only what differs.
#[derive(Default)]
pub(in crate::daemon) struct Armed {
    /// `None` until first enabled and started; then it runs as long as the daemon.
    pub(super) fast: Option<FastSide>,
    /// Compiled from `patterns`.
    pub(super) rules: Arc<Rules>,
    patterns: Option<Vec<RuleDefinition>>,
    pub(super) kmsg: Option<Arc<Kmsg>>,
    pub(super) rescue_state: Option<State>,
    pub(super) kmsg_state: Option<State>,
}

/// Starts the fast side and logs how far it is armed. On failure extents are still counted.
pub(in crate::daemon) fn start(settings: &Settings) -> Armed {
    let mut armed = Armed::default();
    armed.apply(settings, LOOK_BACK);
    armed
}

impl Armed {
    /// Whether the rescue acts.
    pub(super) fn is_armed(&self) -> bool {
        self.rescue_state == Some(State::Up)
    }

    /// Applies changed settings. A kernel log that is opened now is read from `look_back` ago on.
    pub(super) fn apply(&mut self, settings: &Settings, look_back: Duration) {
        self.open_kmsg(settings, look_back);
        let state = self.try_apply(settings).unwrap_or_else(|reason| {
            error!("rescue failed to start: {reason:#}");
            State::Down(format!("{reason:#}"))
        });
        self.rescue_state = Some(state);
    }

    fn try_apply(&mut self, settings: &Settings) -> anyhow::Result<State> {
        let enabled = settings.rescue.enabled;
        if enabled && self.patterns.as_ref() != Some(&settings.klog.rules) {
            self.rules = Arc::new(Rules::compile(&settings.klog.rules).context("klog.rule")?);
            self.patterns = Some(settings.klog.rules.clone());
        }
        let new = fast_settings(settings, Arc::clone(&self.rules), self.kmsg.clone());
        match &mut self.fast {
            Some(fast) => {
                keep_in_memory(fast);
                fast.change(new)?;
            }
            None if enabled => {
                self.fast = Some(FastSide::start(Setup {
                    settings: new,
                    proc: PathBuf::from("/proc"),
                    watchdog: watchdog(),
                })?);
            }
            None => {}
        }
        if !enabled {
            warn!("rescue disabled (rescue.enabled = false)");
            return Ok(State::Off("rescue.enabled = false".to_owned()));
        }
        match &self.fast {
            Some(fast) if !self.is_armed() => log_start(&fast.start_report),
            _ => info!("rescue settings reloaded"),
        }
        Ok(State::Up)
    }

    fn open_kmsg(&mut self, settings: &Settings, look_back: Duration) {
        if !settings.rescue.enabled || !settings.klog.kmsg {
            self.kmsg = None;
            let off = settings.rescue.enabled;
            self.kmsg_state = off.then(|| State::Off("klog.kmsg = false".to_owned()));
            return;
        }
        if self.kmsg.is_some() {
            return;
        }
        let state = match Kmsg::open(Path::new(KMSG), look_back) {
            Ok(kmsg) => {
                self.kmsg = Some(Arc::new(kmsg));
                State::Up
            }
            Err(error) => {
                error!("cannot open {KMSG}: {error}; no kernel message can start a rescue");
                State::Down(format!("cannot open {KMSG}: {error}"))
            }
        };
        self.kmsg_state = Some(state);
    }

    /// Whether something failed that a reload could mend.
    pub(super) fn is_wanting(&self) -> bool {
        let down = |state: &Option<State>| matches!(state, Some(State::Down(_)));
        down(&self.rescue_state) || (down(&self.kmsg_state) && self.kmsg.is_none())
    }

    /// A stream that becomes readable when the fast side has something to report.
    pub(super) fn events(&self) -> Option<UnixStream> {
        let stream = self.fast.as_ref()?.exchange.slow_side().try_clone();
        stream
            .and_then(UnixStream::from_std)
            .inspect_err(|reason| warn!("reports of the rescue will be late: {reason}"))
            .ok()
    }
}

/// Locks memory mapped since the start, if locking worked at the start.
pub(super) fn keep_in_memory(fast: &FastSide) {
    if fast.start_report.memory.is_ok()
        && let Err(error) = lock_no_more()
    {
        debug!("memory mapped since the start is not locked: {error}");
    }
}

/// The settings of the fast side.
pub(crate) fn fast_settings(
    settings: &Settings,
    rules: Arc<Rules>,
    kmsg: Option<Arc<Kmsg>>,
) -> FastSettings {
    let rescue = &settings.rescue;
    FastSettings {
        enabled: rescue.enabled,
        dry_run: rescue.dry_run,
        kmsg,
        rules,
        ladder: Arc::new(LadderSettings {
            steps: rescue.steps.clone(),
            min_interval: rescue.min_interval,
            quiet_after: rescue.quiet_after,
            max_actions_per_hour: rescue.max_actions_per_hour,
        }),
    }
}

fn log_start(report: &StartReport) {
    if let Err(error) = &report.memory {
        warn!(
            "memory not locked ({error}): the rescue may have to wait for a page from disk; CAP_IPC_LOCK or a larger LimitMEMLOCK= helps"
        );
    }
    match report.priority {
        SchedPolicy::RealTime => info!("rescue armed"),
        SchedPolicy::Raised => info!("rescue armed, at raised but not real-time priority"),
        SchedPolicy::Ordinary => warn!(
            "rescue armed, at ordinary priority: on a busy host it may be late; CAP_SYS_NICE helps"
        ),
    }
}

/// systemd's watchdog, if enabled (sd_watchdog_enabled(3)). Its socket is connected now, because
/// nothing is opened in an emergency.
fn watchdog() -> Option<Watchdog> {
    let interval = sd_notify::watchdog_enabled()? / 3;
    let socket = notify_socket()?;
    Some(Watchdog {
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
