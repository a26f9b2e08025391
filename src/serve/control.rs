//! The control socket: HTTP over a Unix socket, for `fragwatch status`, `check`, `history`, `plan`,
//! `pause` and `resume`. The only interface through which a client can change something.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use rustix::fs::{Gid, chown};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tracing::info;

use super::history;
use super::listener::Peer;
use super::plan::PlanRequests;
use super::shared_status::SharedStatus;
use crate::config::settings::{Control, DEFAULT_SOCKET};
use crate::state_dir::StateDir;
use crate::sys::mutex::lock;

const READ_TIMEOUT: Duration = Duration::from_secs(10);
const MODE: u32 = 0o660;
/// Read directly and not through NSS, which may wait for a directory server.
const GROUPS: &str = "/etc/group";

/// The sources of the answers.
#[derive(Debug, Clone)]
pub struct Pages {
    status: Arc<SharedStatus>,
    database: Arc<Path>,
    /// Exists while the operator has paused defragmentation.
    pause: Arc<Mutex<PathBuf>>,
    /// Allows one reading of the history at a time: its disk may hang.
    reading: Arc<Semaphore>,
    plans: PlanRequests,
}

#[derive(Debug, Deserialize)]
struct PlanQuery {
    /// The columns of a plan as text, 0 for no limit; `None` for JSON.
    width: Option<u16>,
}

impl Pages {
    /// Creates the pages; requests for the plan are sent to `plans`.
    pub fn new(status: Arc<SharedStatus>, state: &StateDir, plans: PlanRequests) -> Self {
        Pages {
            plans,
            status,
            database: state.database().into(),
            pause: Arc::new(Mutex::new(state.pause_file())),
            reading: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The routes of the pages.
pub fn router(pages: Pages) -> Router {
    let set = |paused| post(move |pages, peer| set_pause(paused, pages, peer));
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/history", get(history))
        .route("/v1/plan", get(plan))
        .route("/v1/pause", set(true))
        .route("/v1/resume", set(false))
        .with_state(pages)
}

async fn status(State(pages): State<Pages>) -> Response {
    answer(&pages.status.status())
}

/// After [`READ_TIMEOUT`] the client gets an error; until the reading ends, so do further requests.
async fn history(
    State(pages): State<Pages>,
    Query(asked): Query<history::HistoryQuery>,
) -> Response {
    let Ok(turn) = Arc::clone(&pages.reading).try_acquire_owned() else {
        let busy = "the history is being read already; if that lasts, its disk hangs";
        return refuse(StatusCode::SERVICE_UNAVAILABLE, busy);
    };
    let database = Arc::clone(&pages.database);
    let reading = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        history::read(&database, &asked)
    });
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(Ok(mut past))) => {
            past.vm = pages.status.snapshot().vms.get(&past.path).cloned();
            answer(&past)
        }
        Ok(Ok(Err(error))) => refuse(StatusCode::NOT_FOUND, &error.to_string()),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(_) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "the history does not answer; its disk may hang",
        ),
    }
}

async fn plan(State(pages): State<Pages>, Query(query): Query<PlanQuery>) -> Response {
    match (pages.plans.ask(READ_TIMEOUT).await, query.width) {
        (Some(plan), None) => answer_with("application/json", plan.json()),
        (Some(plan), Some(columns)) => {
            let text = plan.text((columns > 0).then_some(columns));
            answer_with("text/plain; charset=utf-8", text)
        }
        (None, _) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            "no plan is available: the state directory does not answer, or the daemon is shutting down",
        ),
    }
}

/// Effective at once in memory, and recorded on disk for the next start.
async fn set_pause(
    paused: bool,
    State(pages): State<Pages>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Response {
    let verb = if paused { "paused" } else { "resumed" };
    info!("defragmentation is {verb} by {peer}");
    pages.status.pause(paused);
    let noting = tokio::task::spawn_blocking(move || note_pause(&pages.pause, &pages.status));
    match tokio::time::timeout(READ_TIMEOUT, noting).await {
        Ok(Ok(Ok(()))) => (StatusCode::OK, format!("\"{verb}\"")).into_response(),
        Ok(Ok(Err(error))) => {
            let why = format!("{verb}, but a restart will forget it: {error:#}");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &why)
        }
        _ => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            &format!("{verb}, but a restart may forget it: the state directory does not answer"),
        ),
    }
}

/// Makes the file match the state in memory, which may include a later, concurrent command.
fn note_pause(file: &Mutex<PathBuf>, status: &SharedStatus) -> anyhow::Result<()> {
    // The path is never changed.
    let file = lock(file);
    let note = || {
        if status.paused() {
            fs::File::create(&*file)?.sync_all()?;
        } else if let Err(error) = fs::remove_file(&*file)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let directory = file.parent().unwrap_or(Path::new("/"));
        fs::File::open(directory)?.sync_all()
    };
    note().with_context(|| file.display().to_string())
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => answer_with("application/json", text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn answer_with(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The configured path. Instead of the default, systemd's runtime directory is used, if there is
/// one (systemd.exec(5), RuntimeDirectory=).
pub fn socket_path(control: &Control) -> PathBuf {
    match std::env::var_os("RUNTIME_DIRECTORY") {
        Some(directory) if control.socket == Path::new(DEFAULT_SOCKET) => {
            PathBuf::from(directory).join("control.sock")
        }
        _ => control.socket.clone(),
    }
}

/// The socket in the file system; removed on drop.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens on the control socket. It is created under another name and renamed once it has its mode
/// and group, so that nobody else can connect in between.
///
/// # Errors
/// AddrInUse if another daemon answers there, AlreadyExists if the path is not a socket, NotFound
/// for a group that does not exist, and errors of creating it.
pub fn listen(control: &Control) -> io::Result<(UnixListener, SocketFile)> {
    let path = socket_path(control);
    let group = group_id(&control.group, Path::new(GROUPS))?;
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)?;
    }
    check_free(&path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let draft = path.with_file_name(name);
    let _ = fs::remove_file(&draft);
    let listener = net::UnixListener::bind(&draft)?;
    let publish = || {
        chown(&draft, None, Some(group))?;
        fs::set_permissions(&draft, Permissions::from_mode(MODE))?;
        fs::rename(&draft, &path)
    };
    publish().inspect_err(|_| drop(fs::remove_file(&draft)))?;
    let file = SocketFile(path);
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, file))
}

fn check_free(path: &Path) -> io::Result<()> {
    let (kind, what) = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => (
            io::ErrorKind::AlreadyExists,
            "something lies there that is no socket; remove it or set control.socket",
        ),
        Ok(_) if net::UnixStream::connect(path).is_ok() => {
            (io::ErrorKind::AddrInUse, "another daemon answers there")
        }
        Ok(_) => return Ok(()),
    };
    Err(io::Error::new(kind, what))
}

/// A numeric group, or the GID from group(5).
fn group_id(name: &str, groups: &Path) -> io::Result<Gid> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let known = fs::read_to_string(groups)?;
    let number = known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    number.map(Gid::from_raw).ok_or_else(|| {
        let message = format!("control.group: there is no group {name:?} in {GROUPS}");
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnixTime;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let directory = tempfile::tempdir().unwrap();
        let groups = directory.path().join("group");
        fs::write(&groups, "root:x:0:\nlibvirt:x:117:anna,bo\nbroken\n").unwrap();
        let id = |name| group_id(name, &groups).map(Gid::as_raw);
        assert_eq!(id("root").unwrap(), 0);
        assert_eq!(id("libvirt").unwrap(), 117);
        assert_eq!(id("4711").unwrap(), 4711);
        let error = id("libvert").unwrap_err();
        assert!(
            error.to_string().contains("no group \"libvert\""),
            "{error}"
        );
    }

    #[test]
    fn the_file_says_what_the_last_of_many_commands_left_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("paused");
        let lifetime = crate::serve::metrics::Lifetime::detached();
        let status = SharedStatus::new(lifetime, UnixTime(0), Duration::ZERO);
        let pause = Mutex::new(file.clone());
        for _ in 0..50 {
            std::thread::scope(|scope| {
                for paused in [true, false, true, false] {
                    let (pause, status) = (&pause, &status);
                    scope.spawn(move || {
                        status.pause(paused);
                        note_pause(pause, status).unwrap();
                    });
                }
            });
            assert_eq!(file.exists(), status.paused());
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let control = Control {
            socket: directory.path().join("deep/er/control.sock"),
            group: "0".to_owned(),
        };
        let (listener, file) = listen(&control).unwrap();
        let mode = fs::metadata(&control.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        let refused = listen(&control).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        std::mem::forget(file);
        drop(listener);
        let (_listener, file) = listen(&control).unwrap();
        drop(file);
        assert!(!control.socket.exists());
        fs::write(&control.socket, "precious").unwrap();
        let refused = listen(&control).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&control.socket).unwrap(), b"precious");
    }
}
