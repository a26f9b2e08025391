//! Progress of long commands on standard error, if that is a terminal.

use std::fmt::Write;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// Commands that finish sooner show nothing.
const PATIENCE: Duration = Duration::from_millis(400);

pub(super) struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: bool,
}

impl Progress {
    /// Work of unknown length.
    pub(super) fn spinner() -> Self {
        Self::new(ProgressBar::new_spinner(), "{spinner} {msg}")
    }

    /// Work of unknown length, of which each call is a sign.
    pub(super) fn beats(message: String) -> impl FnMut() {
        let (mut progress, mut beats) = (Self::spinner(), 0);
        move || {
            beats += 1;
            progress.at(beats, message.clone());
        }
    }

    /// Work of known length in extents.
    pub(super) fn bar(extents: u64) -> Self {
        Self::new(
            ProgressBar::new(extents),
            "{msg} [{bar:30}] {percent:>3}% {eta} left",
        )
    }

    /// Work of known length in bytes.
    pub(super) fn bytes(bytes: u64) -> Self {
        Self::new(
            ProgressBar::new(bytes),
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {left}",
        )
    }

    /// The work is known to be this much now.
    pub(super) fn set_total(&mut self, total: u64) {
        self.bar.set_length(total);
    }

    fn new(bar: ProgressBar, template: &str) -> Self {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        // An invalid template leaves the default style.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ ").with_key("left", left));
        }
        Progress {
            bar,
            began: Instant::now(),
            shown: false,
        }
    }

    /// Reports the position reached.
    pub(super) fn at(&mut self, position: u64, message: String) {
        if !self.shown && self.began.elapsed() >= PATIENCE && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.shown = true;
        }
        self.bar.set_message(message);
        self.bar.set_position(position);
    }
}

/// No estimate before the first extents: the kernel may be loading the whole map.
fn left(state: &ProgressState, text: &mut dyn Write) {
    // Writing to the bar's own buffer cannot fail.
    let _ = match state.pos() {
        0 => write!(text, "begins"),
        _ => write!(text, "{} left", HumanDuration(state.eta())),
    };
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
