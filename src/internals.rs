//! Re-exports for the project's own tests, benchmarks and fuzz targets; not a stable interface. All
//! other modules are private to the crate, so that the compiler reports unused code.

#![allow(missing_docs, reason = "a module has the name of what it re-exports")]

pub use crate::assess::Assessor;
pub use crate::sys::clone::clone_range;
pub use crate::sys::generation::generation;
pub use crate::sys::locks::in_use;

pub mod config {
    pub mod settings {
        pub use crate::config::settings::{
            Blackout, Defrag, History, Maintenance, Thresholds, Window,
        };
        pub use crate::sys::zone::Zone;
    }
}

pub mod defrag {
    pub use crate::defrag::blockcopy::content::Content;
    pub use crate::defrag::blockcopy::qcow2::Layout;
    pub use crate::defrag::engine::{Event, Request};
    pub use crate::defrag::job::run;
    pub use crate::defrag::segments::{Region, Survey};
    pub use crate::defrag::{HostInterfaces, KernelCheck};
}

pub mod discover {
    pub use crate::discover::owner::OwnerSearch;
}

pub mod fleet {
    pub use crate::fleet::Denied;
    pub use crate::fleet::lock::FleetLock;
}

pub mod growth {
    pub use crate::growth::{Recent, forecast, growth};
}

pub mod history {
    pub use crate::history::lock::{self, LockError};
    pub use crate::history::{
        Health, HistoryReader as Reader, ImageInfo, IncidentRow, Record, Recorder, SampleRow,
        SeverityRow, Store, Sweep, open,
    };
    pub use crate::model::ImageRef;
}

pub mod incidents {
    pub use crate::incident::archive;
    pub use crate::incident::evidence::ImageEvidence;
    pub use crate::incident::format::{EventKind, Incident, IncidentState};
    pub use crate::incident::gatherer::Images;
    pub use crate::incident::hook::{HookOutcome, Moment};
    pub use crate::incident::recorder::{Recorder, RecorderSettings};
}

pub mod klog {
    pub use crate::klog::file::{Down, FileSource, FileState, Settings};
    pub use crate::klog::head::{Reading, read};
    pub use crate::klog::kmsg::Kmsg;
    pub use crate::klog::record::Piece;
    pub use crate::klog::stamp::Stamp;
    pub use crate::klog::tail::{Assembler, Line, MAX_LINE};
    pub use crate::klog::{DRILL_MARKER, KernelTime, Match, Record, RuleId, Rules, Sequence, Text};
}

pub mod maintenance {
    pub use crate::maintenance::{
        Active, Allowed, Calendar, Decision, FilesystemFacts, ImageFacts, JitterSeed, LastRun,
        Opening, PlanFacts, PlannedRun, Speeds, User, facts::ideal, plan,
    };
}

pub mod model {
    pub use crate::model::*;
}

pub mod probe {
    pub use crate::probe::extents::{MapReader, ReadPace};
    pub use crate::probe::{Probe, open};
}

pub mod protect {
    pub use crate::protect::apply::{Applied, apply};
    pub use crate::protect::journal::Journal;
    pub use crate::protect::plan::Change;
    pub use crate::sys::fsxattr::Hint;
}

pub mod rescue {
    pub use crate::rescue::clock::now;
    pub use crate::rescue::entry::{Line, Notice, Report};
    pub use crate::rescue::proof::Counters;
    pub use crate::rescue::ring::ring;
    pub use crate::rescue::settings::FastSettings;
    pub use crate::rescue::thread::{FastSide, Setup};
    pub use crate::rescue::{Began, Ended, Ladder, LadderSettings, Order, Packed};
}

pub mod stall {
    pub use crate::stall::{StallDetector, StallSettings};
}
