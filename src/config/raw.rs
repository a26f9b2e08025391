//! The sections and keys that a file may have. A new key is declared here, and the compiler then
//! asks for it in [`settings`](super::settings).

use std::net::SocketAddr;
use std::time::Duration;

use super::reader::{Field as _, Line, Located, sections};
use super::values::OrNever;
use crate::model::{Bytes, ExtentCount};

/// A key that may be absent.
pub(super) type Key<T> = Option<Located<T>>;

sections! {
    /// All that one file sets, or several together.
    Raw {
        images: RawImages,
        sampling: RawSampling,
        thresholds: RawThresholds,
        metrics: RawMetrics,
    }

    /// Which files are watched.
    RawImages {
        paths: Key<Vec<Located<String>>>,
        include: Key<Vec<Located<String>>>,
        exclude: Key<Vec<Located<String>>>,
        min_size: Key<Bytes>,
    }

    /// How often they are looked at.
    RawSampling {
        interval: Key<Duration>,
        map_interval: Key<OrNever>,
        map_max_extents: Key<ExtentCount>,
        probe_timeout: Key<Duration>,
    }

    /// What is too much.
    RawThresholds {
        warning: RawLimits,
        critical: RawLimits,
    }

    /// The thresholds of one severity.
    RawLimits {
        extents: Key<ExtentCount>,
    }

    /// Where the metrics are served.
    RawMetrics {
        listen: Key<SocketAddr>,
    }
}

impl Raw {
    /// The keys that are set as TOML, in the order of their declaration.
    pub(super) fn to_toml(&self) -> String {
        let mut lines = Vec::new();
        self.lines("", "", &mut lines);
        let mut text = String::new();
        let mut open = "";
        for Line {
            section,
            name,
            value,
        } in &lines
        {
            if section != open {
                let gap = if open.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{section}]\n"));
                open = section;
            }
            text.push_str(&format!("{name} = {value}\n"));
        }
        text
    }
}
