//! One pass over the images of one file system: finds them and counts each while it is open.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, makedev, openat, statat};
use rustix::stdio::stdout;

use super::count::Probe;
use super::format_cache::FormatCache;
use super::open::{id, size};
use super::protocol::{Fault, PassedOver, Reply, Root, SurveyRequest};
use super::reply_writer::ReplyWriter;
use super::{identity, open};
use crate::discover::format::by_name;
use crate::discover::paths::{self, Followed};
use crate::discover::rules::{FileVerdict, Rules};
use crate::discover::walk::{Visitor, walk};
use crate::discover::watch::{DirectoryWatch, News, WatchRefusal};
use crate::model::{Bytes, ExtentCount, Format, ImageId, Sample};

/// Up to this many extents, reading a header on XFS costs a few milliseconds and less than 200 KB.
const LOOK_INTO: ExtentCount = ExtentCount(10_000);

/// State kept between surveys.
#[derive(Default)]
pub(super) struct SurveyState {
    formats: FormatCache,
    /// The directory watch, once requested.
    watch: Option<Result<DirectoryWatch, WatchRefusal>>,
}

impl SurveyState {
    /// Begins a survey with the watch, if watching is possible.
    fn begin_watch(&mut self, sweep: u64) {
        if !matches!(self.watch, Some(Ok(_))) {
            self.watch = Some(DirectoryWatch::new(send_news));
        }
        if let Some(Ok(watch)) = &mut self.watch {
            watch.begin(sweep);
        }
    }

    /// Why not all directories of this sweep are watched; `None` if all are.
    fn watch_refused(&self) -> Option<&WatchRefusal> {
        match self.watch.as_ref()? {
            Ok(watch) => watch.refused(),
            Err(refusal) => Some(refusal),
        }
    }
}

/// Writes to the pipe without blocking; if it is full, the same news is already in it.
fn send_news(news: News) {
    let _ = rustix::io::write(stdout(), &[news.to_byte()]);
}

/// Carries out a survey. Fails if a glob is invalid, which the configuration should have refused.
pub(super) fn run(
    request: &SurveyRequest,
    state: &mut SurveyState,
    out: &mut ReplyWriter,
) -> io::Result<()> {
    let rules = Rules::new(&request.selection).map_err(io::Error::other)?;
    let probe = Probe::new(request.mount.kind());
    out.at_hand(&request.mount.point);
    match identity::filesystem(&probe, &request.mount) {
        Ok(filesystem) => out.push(&Reply::Filesystem(filesystem)),
        Err(error) => out.push(&Reply::Fault(Fault::new(&request.mount.point, &error))),
    }
    if let Some(sweep) = request.watch {
        state.begin_watch(sweep);
    }
    let mut survey = Survey {
        request,
        probe,
        state,
        out,
        rules: &rules,
        held: request.held.iter().map(|held| held.0.as_path()).collect(),
        held_inodes: request.held_inodes.iter().copied().collect(),
        seen: HashSet::new(),
        passed_over: PassedOver::default(),
        left: request.limit,
        ended: false,
    };
    for root in &request.roots {
        survey.root(root);
    }
    let passed_over = survey.passed_over;
    if request.watch.is_some() {
        let refused = state.watch_refused().map(ToString::to_string);
        out.push(&Reply::Watched(refused));
    }
    out.push(&Reply::PassedOver(passed_over));
    Ok(())
}

struct Survey<'a> {
    request: &'a SurveyRequest,
    probe: Probe,
    state: &'a mut SurveyState,
    out: &'a mut ReplyWriter,
    rules: &'a Rules,
    held: HashSet<&'a Path>,
    held_inodes: HashSet<u64>,
    /// Images already counted; hard links and paths named twice are the same image.
    seen: HashSet<ImageId>,
    passed_over: PassedOver,
    /// Remaining number of files and directories in the search of one root.
    left: u32,
    ended: bool,
}

impl Survey<'_> {
    fn root(&mut self, root: &Root) {
        self.out.at_hand(&root.path);
        self.left = self.request.limit;
        self.ended = false;
        if !root.glob {
            return match paths::follow(&root.path, &self.request.scope) {
                Ok(followed) => self.followed(followed, false),
                Err(error) => self.fault(&root.path, &error),
            };
        }
        let request = self.request;
        let expanded = paths::expand(&root.path, &request.scope, &mut |directory| {
            self.out.beat();
            self.watch(directory);
        });
        for (path, error) in expanded.faults {
            self.fault(&path, &error);
        }
        for followed in expanded.found {
            if let Followed::Here(path) = &followed
                && self.met(path).is_break()
            {
                return;
            }
            self.followed(followed, true);
            if self.ended {
                return;
            }
        }
    }

    /// Counts a file or directory of the search; breaks off at the limit.
    fn met(&mut self, path: &Path) -> ControlFlow<()> {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return ControlFlow::Continue(());
        }
        self.ended = true;
        let directory = path.parent().unwrap_or(path);
        let limit = ExtentCount(self.request.limit.into());
        let error = format!(
            "the search ends here: it has met {limit} files and directories, which is images.limit; \
             what comes after is not watched. Name the directories of the images in images.paths, \
             or raise images.limit"
        );
        self.fault(directory, &io::Error::other(error));
        ControlFlow::Break(())
    }

    fn followed(&mut self, followed: Followed, glob: bool) {
        match followed {
            Followed::Elsewhere(path) => self.out.push(&Reply::Elsewhere(Root { path, glob })),
            Followed::Here(path) => {
                self.out.at_hand(&path);
                match statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => self.place(&path, &stat),
                    Err(error) => self.fault(&path, &error.into()),
                }
            }
        }
    }

    fn place(&mut self, path: &Path, stat: &Stat) {
        let request = self.request;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => walk(path, &request.scope, self.rules, self),
            FileType::RegularFile => self.named_file(path),
            kind => self.fault(path, &open::not_a_file(kind)),
        }
    }

    /// A file named by the operator is an image, whatever its size and format.
    fn named_file(&mut self, path: &Path) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        self.watch(parent);
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        // If the directory is unreadable, only its hint stays unknown.
        let counted = openat(CWD, parent, flags, Mode::empty())
            .or_else(|_| openat(CWD, parent, flags | OFlags::PATH, Mode::empty()))
            .map_err(io::Error::from)
            .and_then(|directory| {
                let at = directory.as_fd();
                self.count(at, name, path, true)?;
                let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
                self.data_files(at, &stat, path, true)
            });
        if let Err(error) = counted {
            self.fault(path, &error);
        }
    }

    fn found_file(&mut self, at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<()> {
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let size = size(&stat);
        let passed_over = &mut self.passed_over;
        match self.rules.verdict(path, size) {
            FileVerdict::Unwanted => {
                passed_over.unwanted += 1;
                return Ok(());
            }
            FileVerdict::TooSmall => {
                passed_over.too_small += 1;
                passed_over.too_small_bytes = passed_over.too_small_bytes.saturating_add(size);
                // The header of an image can be small where its data is not.
                let names_others = matches!(by_name(path), Some(Format::Qcow2 | Format::Vmdk));
                if names_others && !self.state.formats.is_known(id(&stat), &stat) {
                    self.read_header(at, name)?;
                }
            }
            FileVerdict::Image => self.count(at, name, path, true)?,
            FileVerdict::Look => {
                let certain = by_name(path) == Some(Format::Raw) || self.is_held(path, &stat);
                // Known not to be an image: not even opened.
                if self.state.formats.is_no_image(id(&stat), &stat) && !certain {
                    self.passed_over.unwanted += u64::from(!self.seen.contains(&id(&stat)));
                } else {
                    self.count(at, name, path, certain)?;
                }
            }
        }
        self.data_files(at, &stat, path, false)
    }

    /// Whether QEMU has a file open. In a subvolume of btrfs another file has the same inode number.
    fn is_held(&self, path: &Path, stat: &Stat) -> bool {
        let device = self.request.mount.device;
        let one_space = stat.st_dev == makedev(device.major, device.minor);
        self.held.contains(path) || (one_space && self.held_inodes.contains(&stat.st_ino))
    }

    /// Reads the header of a file that may name others with the data of the image.
    fn read_header(&mut self, at: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let (file, stat) = open::regular_file(at, name)?;
        let mount = &self.request.mount;
        let count = self.probe.count(&file, at, &mut || self.out.beat())?;
        if mount.holds(&file, stat.st_dev) && count.extents <= LOOK_INTO {
            let key = identity::key(&file, &stat, mount);
            let generation = key.map_or(0, |key| key.generation);
            self.state
                .formats
                .read(id(&stat), generation, &stat, &file)?;
        }
        Ok(())
    }

    /// Counts the files that hold the data of an image with this header, if other files do: they
    /// have the extents, and nothing in them shows that they are images. Only files in the same
    /// directory count, because a guest can write a header that names any file.
    fn data_files(
        &mut self,
        at: BorrowedFd<'_>,
        header: &Stat,
        path: &Path,
        named: bool,
    ) -> io::Result<()> {
        for file in self.state.formats.data_files(id(header), header) {
            let whole = path.with_file_name(&file);
            let in_directory = whole.parent() == path.parent();
            let Some(name) = whole.file_name().filter(|_| in_directory) else {
                continue;
            };
            // It is missing if the image was not copied as a whole.
            let Ok(stat) = statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let verdict = self.rules.verdict(&whole, size(&stat));
            let is_image = matches!(verdict, FileVerdict::Image | FileVerdict::Look);
            if is_file && (named || is_image) {
                self.count(at, name, &whole, true)?;
            }
        }
        Ok(())
    }

    /// Counts a file. Unless it is `certain` to be an image, it must look like one to be reported.
    fn count(
        &mut self,
        at: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        certain: bool,
    ) -> io::Result<()> {
        let (file, stat) = open::regular_file(at, name)?;
        let (id, mount) = (id(&stat), &self.request.mount);
        // Something was mounted over it since the mount table was read; the next sweep handles it.
        if !mount.holds(&file, stat.st_dev) || self.seen.contains(&id) {
            return Ok(());
        }
        let began = Instant::now();
        let count = self.probe.count(&file, at, &mut || self.out.beat())?;
        let took = began.elapsed();
        let key = identity::key(&file, &stat, mount);
        let generation = key.as_ref().map_or(0, |key| key.generation);
        let format = self.format(&file, &stat, generation, path, count.extents)?;
        // The data of a VMDK can lie in a file without a header, `db-flat.vmdk`.
        let named = by_name(path).filter(|format| *format == Format::Vmdk);
        let without_header = certain.then_some(named.unwrap_or(Format::Raw));
        let Some(format) = format.or(without_header) else {
            self.passed_over.unwanted += 1;
            return Ok(());
        };
        self.seen.insert(id);
        // st_blocks counts units of 512 bytes on every file system (stat(2)).
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        let sample = Sample {
            id,
            key,
            path: path.to_owned(),
            format,
            extents: count.extents,
            size: size(&stat),
            allocated: Bytes(blocks.saturating_mul(512)),
            extent_size_hint: count.hint,
            directory_hint: count.directory_hint,
            cow_hint: count.cow_hint,
            qcow2: self.state.formats.qcow2(id, generation),
        };
        self.out.push(&Reply::Image(Box::new(sample), took));
        Ok(())
    }

    /// The format of an image; `None` if it does not look like one.
    ///
    /// The header is read only after the count: reading a single byte makes XFS load the whole
    /// extent map (xfs_bmapi_read calls xfs_iread_extents, fs/xfs/libxfs/xfs_bmap.c; 10 s and 600
    /// MB for an image with 34,694,398 extents). A file with too many extents is always reported:
    /// it costs the kernel as much as an image.
    fn format(
        &mut self,
        file: &File,
        stat: &Stat,
        generation: u32,
        path: &Path,
        extents: ExtentCount,
    ) -> io::Result<Option<Format>> {
        let (id, formats) = (id(stat), &mut self.state.formats);
        if let Some(remembered) = formats.get(id, generation, stat) {
            return Ok(remembered);
        }
        if extents > LOOK_INTO && self.probe.loads_whole_maps() {
            let format = formats.last_known(id, generation).or_else(|| by_name(path));
            return Ok(Some(format.unwrap_or(Format::Unknown)));
        }
        formats.read(id, generation, stat, file)
    }

    fn watch(&mut self, directory: &Path) {
        if self.request.watch.is_none() {
            return;
        }
        self.out.at_hand(directory);
        // The search reports a missing directory.
        if let Ok(stat) = statat(CWD, directory, AtFlags::empty()) {
            self.watch_listed(directory, (stat.st_dev, stat.st_ino));
        }
    }

    fn watch_listed(&mut self, directory: &Path, id: (u64, u64)) {
        if let (Some(_), Some(Ok(watch))) = (self.request.watch, &mut self.state.watch) {
            watch.directory(directory, id);
        }
    }

    fn fault(&mut self, path: &Path, error: &io::Error) {
        self.out.push(&Reply::Fault(Fault::new(path, error)));
    }
}

impl Visitor for Survey<'_> {
    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        _: u64,
    ) -> ControlFlow<()> {
        self.met(path)?;
        self.out.at_hand(path);
        if let Err(error) = self.found_file(directory, name, path) {
            self.fault(path, &error);
        }
        ControlFlow::Continue(())
    }

    fn directory(&mut self, path: &Path) {
        self.out.at_hand(path);
    }

    fn listed(&mut self, path: &Path, id: (u64, u64)) -> ControlFlow<()> {
        self.met(path)?;
        self.watch_listed(path, id);
        ControlFlow::Continue(())
    }

    fn mount_point(&mut self, path: &Path) {
        let root = Root::literal(path.to_owned());
        self.out.push(&Reply::Elsewhere(root));
    }

    fn fault(&mut self, path: &Path, error: &io::Error) {
        Survey::fault(self, path, error);
    }

    fn beat(&mut self) {
        self.out.beat();
    }
}
