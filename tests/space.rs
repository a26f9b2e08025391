//! `fragwatch space`: the free extents as the kernel has them, and what an image would get.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};
use serde_json::Value;

use support::bed::Plan;
use support::expect::Said;
use support::{Bed, MIB, daemon, guest, prepared, tools};

/// `fragwatch space` with images of any size.
fn run(path: &Path, arguments: &[&str]) -> Said {
    let mut config = tempfile::NamedTempFile::new().unwrap();
    config.write_all(b"[images]\nmin_size = \"0B\"\n").unwrap();
    let mut command = daemon::fragwatch();
    command.arg("--config").arg(config.path()).arg("space");
    Said::by(command.args(arguments).arg(path))
}

fn space(path: &Path) -> Value {
    let said = run(path, &["--json"]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let mut document: Value = serde_json::from_str(&said.out).unwrap();
    document["filesystems"][0].take()
}

/// Free extents and blocks by the program of xfsprogs, from the most blocks on down.
fn by_spaceman(bed: &Bed) -> (u64, u64) {
    let mut command = Command::new("xfs_spaceman");
    let said = Said::by(command.args(["-c", "freesp -s"]).arg(bed.path())).out;
    let number = |what: &str| {
        let line = said.lines().find(|line| line.starts_with(what));
        let number = line.and_then(|line| line.rsplit(' ').next()).unwrap();
        number.parse().unwrap()
    };
    (number("total free extents"), number("total free blocks"))
}

/// Gives back so many blocks of a file, no two of them side by side.
fn fragment_free_space(bed: &Bed, extents: u64) {
    let file = bed.path().join("comb");
    guest::sequential(&file, 4 * extents * guest::BLOCK);
    guest::discard_holes(&file, extents);
    bed.sync();
}

fn agrees_with_spaceman(mkfs: &[&str]) {
    let bed = support::require!(Bed::xfs_with(mkfs));
    for extents in [0, 3000] {
        if extents > 0 {
            fragment_free_space(&bed, extents);
        }
        compare_with_spaceman(&bed, extents);
    }
}

/// There are at least so many free extents.
fn compare_with_spaceman(bed: &Bed, extents: u64) {
    let found = space(bed.path());
    let block = found["block_size_bytes"].as_u64().unwrap();
    let blocks = found["free_bytes"].as_u64().unwrap() / block;
    let count = found["free_extents"].as_u64().unwrap();
    assert_eq!((count, blocks), by_spaceman(bed));
    assert!(count >= extents, "{count}");
    for (part, key) in [("groups", "free_bytes"), ("histogram", "bytes")] {
        let parts = found[part].as_array().unwrap();
        let sum: u64 = parts.iter().map(|it| it[key].as_u64().unwrap()).sum();
        assert_eq!(sum, blocks * block, "{part}");
    }
    assert_eq!(found["groups"].as_array().unwrap().len(), 4);
}

#[test]
fn agrees_with_spaceman_without_reverse_mapping() {
    agrees_with_spaceman(&["-m", "rmapbt=0", "-d", "agcount=4"]);
}

/// Although the kernel would read another tree for root.
#[test]
fn agrees_with_spaceman_with_reverse_mapping() {
    agrees_with_spaceman(&["-m", "rmapbt=1", "-d", "agcount=4"]);
}

#[test]
fn agrees_with_spaceman_with_small_blocks() {
    agrees_with_spaceman(&["-b", "size=1024", "-d", "agcount=4"]);
}

#[test]
fn agrees_with_spaceman_on_a_million_free_extents() {
    let extents = 1_000_000;
    let bed = support::require!(Bed::fragmented(extents));
    assert!(bed.path().join(prepared::IMAGE).exists());
    // Between two blocks of the image lies one that is free, or belongs to its map.
    compare_with_spaceman(&bed, extents / 100 * 99);
}

#[test]
fn an_image_has_a_lower_limit_of_extents() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.img");
    guest::alternate_blocks(&image, 500);
    bed.sync();
    let found = space(bed.path());
    let image = &found["images"][0];
    assert_eq!(image["extents"], 500);
    // The free space is whole.
    assert_eq!(image["at_least_extents"], 1);
    assert_eq!(image["missing_bytes"], Value::Null);
    assert_eq!(image["why_not"], Value::Null);
    // Of 500,000 extents on it would be one.
    assert_eq!(image["candidate"], false);
    let longest = |group: &Value| group["longest_free_extent_bytes"].as_u64().unwrap();
    let groups = found["groups"].as_array().unwrap();
    let shortest = groups.iter().map(longest).min().unwrap();
    let worst = usize::try_from(found["worst_group"].as_u64().unwrap()).unwrap();
    assert_eq!(longest(&groups[worst]), shortest);
    let said = run(bed.path(), &[]);
    assert_eq!(said.code, Some(0));
    let worst = format!("Worst: group {worst}, ");
    for part in ["a.img", "suffices", &worst, "defrag.keep_free"] {
        assert!(said.out.contains(part), "{}", said.out);
    }
}

/// Blocks of the image on a [`Shattered`].
const IMAGE: u64 = 16_384;

/// A file system whose free extents have so many blocks, almost all of them, and a configuration for
/// commands on its images.
struct Shattered {
    bed: Bed,
    config: PathBuf,
}

impl Shattered {
    /// With an image of [`IMAGE`] blocks, nearly each an extent of its own.
    fn new(free_extent: u64) -> support::Here<Shattered> {
        tools::have("xfs_fsr")?;
        let bed = Plan::of("xfs").size(512 * MIB).make()?;
        let image = bed.path().join("vm.img");
        guest::random_direct_writes(&image, IMAGE * guest::BLOCK, IMAGE);
        let comb = File::create(bed.path().join("comb")).unwrap();
        let mut end = 0;
        let (mut piece, allocate) = (64 * MIB, FallocateFlags::empty());
        // Until there is no room for a block.
        while piece >= guest::BLOCK {
            match fallocate(&comb, allocate, end, piece) {
                Ok(()) => end += piece,
                Err(_) => piece /= 2,
            }
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = free_extent * guest::BLOCK;
        for number in (0..end / (2 * length)).rev() {
            fallocate(&comb, punch, 2 * number * length, length).unwrap();
        }
        bed.sync();
        let config = bed.path().parent().unwrap().join("space.toml");
        let text = format!(
            "[images]\nmin_size = \"0B\"\npaths = [{:?}]\n[thresholds]\nwarning = {{ extents = 1000 }}\n\
             [defrag]\nengines = [\"xfs_fsr\"]\nkeep_free = \"0%\"\nmax_io_pressure = 100\n\
             max_swap_stall = \"10m\"\n[[maintenance.window]]\nstart = \"00:00\"\nduration = \"24h\"\n\
             days = [\"Mon\", \"Tue\", \"Wed\", \"Thu\", \"Fri\", \"Sat\", \"Sun\"]\n",
            bed.path()
        );
        fs::write(&config, text).unwrap();
        Ok(Shattered { bed, config })
    }

    fn image(&self) -> PathBuf {
        self.bed.path().join("vm.img")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = daemon::fragwatch();
        command.arg("--config").arg(&self.config).args(words);
        command.env("STATE_DIRECTORY", self.config.with_extension("state"));
        command
    }

    /// The image in a list of them.
    fn of_image(&self, images: &Value) -> Value {
        let is_it = |it: &&Value| it["path"] == self.image().to_str().unwrap();
        let mut images = images.as_array().unwrap().iter();
        images.find(is_it).unwrap().clone()
    }

    /// What `fragwatch space` promises for the image.
    fn promised(&self) -> Value {
        let document = json(&mut self.command(&["space", "--json"]));
        self.of_image(&document["filesystems"][0]["images"])
    }

    /// What `fragwatch plan` decides.
    fn planned(&self) -> Value {
        self.of_image(&json(&mut self.command(&["plan", "--json"]))["images"])
    }

    /// What `fragwatch defrag` makes of the image.
    fn defragmented(&self) -> Value {
        let mut command = self.command(&["defrag", "--force-window", "--json"]);
        json(command.arg(self.image()))["runs"][0].take()
    }
}

fn json(command: &mut Command) -> Value {
    let said = Said::by(command);
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"))
}

#[test]
fn no_run_gets_fewer_extents_than_are_promised() {
    let free_extent = 64;
    let shattered = support::require!(Shattered::new(free_extent));
    let promised = shattered.promised();
    assert_eq!(promised["candidate"], true, "{promised}");
    assert_eq!(promised["why_not"], Value::Null, "{promised}");
    let least = promised["at_least_extents"].as_u64().unwrap();
    // A part of the image fits into what XFS keeps for itself at the end, in one piece.
    assert!(least > 10 && least <= IMAGE / free_extent, "{least}");
    assert_eq!(shattered.planned()["run"]["engine"], "xfs_fsr");
    let run = shattered.defragmented();
    assert_eq!(run["outcome"], "improved", "{run}");
    let got = tools::xfs_io_stat_nextents(&shattered.image());
    assert!(got >= least, "{got} of {least}");
    assert!(got < IMAGE / 10, "{got} of {least}");
}

#[test]
fn a_run_that_cannot_help_is_refused_in_words() {
    let shattered = support::require!(Shattered::new(1));
    let promised = shattered.promised();
    let least = promised["at_least_extents"].as_u64().unwrap();
    assert!(least > IMAGE / 10, "{promised}");
    let why = &promised["why_not"];
    assert_eq!(why["code"], "free_space_fragmented", "{promised}");
    assert_eq!(&shattered.planned()["why_not"], why);
    let before = tools::filefrag_extents(&shattered.image());
    let run = shattered.defragmented();
    assert_eq!(run["outcome"], "refused", "{run}");
    assert_eq!(run["guard"], "free_space_fragmented", "{run}");
    assert_eq!(run["reason"], why["text"], "{run}");
    assert_eq!(tools::filefrag_extents(&shattered.image()), before);
}

#[test]
fn ext4_reports_its_free_space_too() {
    let bed = support::require!(Bed::ext4());
    guest::sequential(&bed.path().join("a.img"), 1 << 20);
    bed.sync();
    let found = space(bed.path());
    let free = rustix::fs::statvfs(bed.path()).unwrap();
    let free = free.f_bfree * free.f_frsize;
    // Blocks that are reserved for groups of inodes not yet in use are no free extents.
    let reported = found["free_bytes"].as_u64().unwrap();
    assert!(reported.abs_diff(free) < free / 50, "{reported} of {free}");
}

#[test]
fn btrfs_is_refused_in_words() {
    let bed = support::require!(Bed::btrfs());
    guest::sequential(&bed.path().join("a.img"), 1 << 20);
    bed.sync();
    let said = run(bed.path(), &[]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("does not report its free extents"),
        "{said:?}"
    );
}
