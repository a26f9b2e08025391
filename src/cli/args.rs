//! The arguments of the command line and their help texts; each subcommand has a file of its own.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::model::Engine;

/// Watches the extent fragmentation of VM disk images
///
/// Counts the extents of disk images on XFS (and other file systems), in constant time and without
/// loading their extent maps, and serves the counts to Prometheus.
#[derive(Debug, Parser)]
#[command(
    name = "fragwatch",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Arguments {
    /// Configuration file; fragments in conf.d beside it are read after it
    /// [default: /etc/fragwatch/fragwatch.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count the extents of images and show them, worst first
    Scan(ScanArguments),
    /// Run as a daemon: count at intervals and serve the counts to Prometheus
    Run,
    /// Show the state of the daemon: images, growth, file systems, rescue
    Status(StatusArguments),
    /// Show which images will be defragmented and when, and why others are left alone
    Plan(Form),
    /// Show the free space of the file systems of images, and what a defragmentation could bring
    Space(SpaceArguments),
    /// Show how many extents images can still gain, and set the hints that limit it
    Protect(ProtectArguments),
    /// Stop the defragmentations of the daemon and start no others
    Pause,
    /// Allow the daemon to defragment again
    Resume,
    /// Show the history of an image: a chart of its extents, thresholds, defragmentations
    History(HistoryArguments),
    /// Check the host as a monitoring plugin: one line, performance data, exit code
    #[command(after_help = "\
Exit status: 0 ok, 1 warning, 2 critical, 3 unknown: no daemon answers, or its counts are old.")]
    Check(Form),
    /// Find out what is wrong with this host: what hurts now, and settings that will (needs root)
    Doctor(DoctorArguments),
    /// Show incidents: kernel messages, actions of the rescue and their effects
    Incidents {
        /// Number of an incident in the list; 1 is the newest
        n: Option<usize>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Directory with the incident files
        ///
        /// By default, the one below the directory of history.path.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Prove that the rescue path works: kernel log, reader, ladder, actor (needs root)
    Drill {
        /// Really drop the slab cache
        #[arg(long)]
        act: bool,
    },
    /// Defragment images now, with the guards of a maintenance window (needs root)
    Defrag(DefragArguments),
    /// Write one HTML file about the images of this host, to be mailed: from the history alone
    Report(ReportArguments),
    /// Check a configuration and report each mistake with its place
    CheckConfig(CheckConfigArguments),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; it must exist
        directory: PathBuf,
    },
    /// Put back the extent-size hints of runs that were killed; started by the daemon
    #[command(name = crate::defrag::hint::RESTORE_COMMAND, hide = true)]
    RestoreHints {
        /// Where they are noted
        hints: PathBuf,
        /// Only end copies whose guest may stand still
        #[arg(long)]
        suspended: bool,
    },
    /// End a copy whose run was killed while its guest stood still
    #[command(name = crate::defrag::blockcopy::watchdog::COMMAND, hide = true)]
    BlockcopyWatchdog {
        /// Where the copy is noted
        note: PathBuf,
    },
    /// Carry out a job that the daemon writes to standard input
    #[command(name = crate::defrag::job::COMMAND, hide = true)]
    DefragJob,
    /// The process that continues a run that is stopped; started by the program itself
    #[command(name = crate::defrag::awake::COMMAND, hide = true)]
    KeepAwake,
    /// The process that probes one file system; started by the program itself
    #[command(name = crate::probe::worker::HELPER_COMMAND, hide = true)]
    ProbeHelper,
    /// The process that reads the geometry of each XFS; started by the program itself
    #[command(name = crate::doctor::xfs::COMMAND, hide = true)]
    DoctorHelper,
}

/// Of the subcommands that only show something.
#[derive(Debug, Args)]
pub struct Form {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `fragwatch status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Show it anew every N seconds, until Ctrl-C
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "2",
        conflicts_with = "json", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
}

/// Of `fragwatch space`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Exit status: 0 when everything could be read, 1 when something could not, 2 on wrong usage.")]
pub struct SpaceArguments {
    /// Mount points, directories or images; by default, what is configured in images.paths
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `fragwatch doctor`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Exit status: 0 nothing found, 1 warning, 2 critical, 3 nothing found, but not all could be checked.")]
pub struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Explain a check, and examine nothing
    #[arg(long, value_name = "ID", conflicts_with_all = ["json", "watch"])]
    pub explain: Option<String>,

    /// Read the counters again after so many seconds, and show what only shows over time
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch: Option<u64>,
}

/// Of `fragwatch protect`.
#[derive(Debug, Default, Args)]
#[command(group(clap::ArgGroup::new("change").args(["apply", "rewrite"])))]
#[command(after_help = "\
Exit status: 0 when everything was done, 1 when something could not be read, set or restored, 2 on
wrong usage, or if nothing could be done.

Without --apply, --undo, --rewrite or --rewrite-finish nothing is changed.")]
pub struct ProtectArguments {
    /// Files and directories [default: the paths of the configuration]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Set extent-size hints: on the directories of images for new files, and on images for copy on
    /// write (needs root)
    #[arg(long)]
    pub apply: bool,

    /// With --apply: also where little space is free, and on thin-provisioned storage; with --rewrite:
    /// also if the image shares blocks with a reflink copy
    #[arg(long, requires = "change")]
    pub force: bool,

    /// Restore all hints that --apply has changed (needs root)
    #[arg(long, conflicts_with_all = ["apply", "paths"])]
    pub undo: bool,

    /// Rewrite this image, which no VM may be using, so that it has few extents and gets few new ones
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["apply", "undo", "paths", "json"])]
    pub rewrite: Option<PathBuf>,

    /// Remove the old file that a rewrite of this image has kept
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["rewrite", "apply", "undo", "paths", "json"])]
    pub rewrite_finish: Option<PathBuf>,

    /// With --rewrite: check all guards and change nothing
    #[arg(long, requires = "rewrite")]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `fragwatch scan`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Exit status: 0 when everything could be read, 1 when something could not, 2 on wrong usage.

An image is a file with the header of a known format (qcow2, vmdk, vdi, vhdx, vhd, qed, parallels,
luks) or a partition table, one whose name ends in .raw, .img or .disk, one that a VM has open, or
one that is named on the command line.")]
pub struct ScanArguments {
    /// Files and directories to scan [default: the paths of the configuration]
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Read the extent maps too: physical fragments, holes, a histogram of extent lengths
    ///
    /// Reading a map loads it into kernel memory, where it stays as long as the image is open:
    /// about 18 bytes per extent. Maps with more extents than sampling.map_max_extents are skipped.
    #[arg(long, conflicts_with = "census")]
    pub map: bool,

    /// With --map: read maps of any length, whatever memory they take
    #[arg(long, requires = "map")]
    pub force: bool,

    /// Count all files of the XFS that this path lies on, not only images (needs root)
    #[arg(long, value_name = "MOUNT", conflicts_with = "paths")]
    pub census: Option<PathBuf>,

    /// Show only the first N images; with --census, name the worst N files
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,

    /// Sort by this, largest first
    #[arg(long, value_enum, default_value_t = SortKey::Extents, value_name = "KEY")]
    pub sort: SortKey,

    /// Skip smaller files found in directories, e.g. 64MiB [default: images.min_size]
    #[arg(long, value_name = "SIZE")]
    pub min_size: Option<String>,
}

/// Of `fragwatch defrag`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if every image has fewer extents or had nothing to gain, 1 if one was left as it was,
2 on wrong usage.

xfs_fsr is for images that no process has open. A process that opens one meanwhile waits until the run
has ended, some milliseconds; a run that is ended leaves the image as it was.

online is for images that a VM may be using, on an XFS with reflink. It works in segments of some
hundred KiB; Ctrl-C ends it between two of them, and finished segments stay defragmented.

blockcopy is for images of running VMs of libvirt, on XFS or ext4, where online cannot work: libvirt
copies the image, the VM uses the copy from then on, and the copy takes the name of the image. The VM
stands still for some hundred milliseconds, once. Ctrl-C gives the copy up.

Without --engine, the first of defrag.engines that can be used is chosen, as the planner does. If one
is passed over, a line gives the reason: the image is in use or shares blocks, too little space is
free, the final swap would stall readers, or the window would close before the end. An engine that is
named is used also if defrag.engines does not list it and [defrag.blockcopy] is not enabled.

A run needs an open window, no result of the query of [maintenance.hold], and the lock of
[maintenance.lock], which is held until the command ends. --force-window ignores window and query,
--force-lock the lock. A dry run needs none of them.

The section [defrag] of the configuration has the limits of a run.")]
pub struct DefragArguments {
    /// The images, by their real paths
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,

    /// Engine to use; of several, the first that can be used [default: defrag.engines]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub engine: Vec<EngineName>,

    /// Check all guards and start nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Run also outside of the maintenance windows, and against maintenance.hold
    #[arg(long)]
    pub force_window: bool,

    /// Run also without the lock of maintenance.lock
    #[arg(long)]
    pub force_lock: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What defragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// For images that no process has open
    #[value(name = "xfs_fsr")]
    XfsFsr,
    /// Under a running VM
    Online,
    /// By the hypervisor of a running VM of libvirt, where online cannot
    #[value(name = "blockcopy")]
    BlockCopy,
}

impl EngineName {
    pub(super) fn engine(self) -> Engine {
        match self {
            EngineName::XfsFsr => Engine::XfsFsr,
            EngineName::Online => Engine::Online,
            EngineName::BlockCopy => Engine::BlockCopy,
        }
    }
}

/// What `fragwatch scan` sorts by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum SortKey {
    /// Number of extents
    #[default]
    Extents,
    /// Mean length of an extent, shortest first
    Mean,
    /// Length of the file
    Size,
    /// Space that the file occupies on disk
    Allocated,
    /// Name, in alphabetical order
    Path,
}

/// Of `fragwatch history`.
#[derive(Debug, Args)]
pub struct HistoryArguments {
    /// The image: its path, or the end of its path, such as its name
    pub image: PathBuf,

    /// How far back, e.g. 6h or 90d
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub since: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `fragwatch report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 when everything could be read, 1 when an incident file could not, 2 when there is no
history, or no such image.")]
pub struct ReportArguments {
    /// Only these images, by their paths or the ends of them [default: all, and charts of the worst]
    #[arg(value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// How far back, e.g. 7d or 90d
    #[arg(long, value_name = "DURATION", default_value = "30d")]
    pub since: String,

    /// Write to this file [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Replace the names of VMs, images and host, and paths, by words; the same name by the same word
    #[arg(long)]
    pub redact: bool,
}

/// Of `fragwatch check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArguments {
    /// The file to check [default: as --config]
    pub file: Option<PathBuf>,

    /// Print the configuration in force, defaults included
    #[arg(long)]
    pub show: bool,
}
