//! `fragwatch scan`: it finds every image, and counts what the tools count.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use support::child::Child;
use support::expect::{
    BindMount, Said, config, copy_program, report, scan, scan_with, traced, undisturbed, whole,
};
use support::guest::{self, BLOCK};
use support::{Bed, KIB, MIB, tools};

/// Files in `dir` as guests leave them behind.
fn fragmented(dir: &Path) -> Vec<PathBuf> {
    let file = |name: &str| dir.join(name);
    guest::random_direct_writes(&file("random.img"), 64 * MIB, 4096);
    guest::preallocated_then_random_writes(&file("preallocated.img"), 64 * MIB, 2048);
    guest::sequential(&file("discarded.img"), 64 * MIB);
    guest::discard_holes(&file("discarded.img"), 1500);
    guest::alternate_blocks(&file("alternate.img"), 3000);
    File::create(file("empty.img")).unwrap();
    File::create(file("sparse.img"))
        .unwrap()
        .set_len(MIB)
        .unwrap();
    // Not yet on disk: the counts below are of what is in memory.
    guest::buffered_delalloc(&file("delayed.img"), 100);
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// The facts of an image that are no counts are those of stat(2), and follow from each other.
#[track_caller]
fn assert_facts(image: &Value, path: &Path) {
    let stat = fs::metadata(path).unwrap();
    assert_eq!(image["size_bytes"], stat.size());
    assert_eq!(image["allocated_bytes"], stat.blocks() * 512);
    assert_eq!(image["inode"], stat.ino());
    let mean = (stat.blocks() * 512).checked_div(image["extents"].as_u64().unwrap());
    assert_eq!(image["mean_extent_bytes"].as_u64(), mean);
    assert_eq!(image["severity"], "ok");
    assert_eq!(image["map"], Value::Null);
}

#[track_caller]
fn assert_filesystem(image: &Value, bed: &Bed, kind: &str) {
    let filesystem = &image["filesystem"];
    assert_eq!(filesystem["type"], kind);
    assert_eq!(filesystem["mount"], bed.path().to_str().unwrap());
    assert_eq!(filesystem["uuid"], uuid(bed));
}

/// The UUID that the file system itself bears.
fn uuid(bed: &Bed) -> String {
    let blkid = Command::new("blkid")
        .args(["--probe", "--output=value", "--match-tag=UUID"])
        .arg(bed.device())
        .output()
        .unwrap();
    let uuid = String::from_utf8(blkid.stdout).unwrap();
    uuid.trim().to_owned()
}

fn counts_agree_on_xfs(bed: &Bed, reflinks: bool, extent_limit: u64) {
    let mut files = fragmented(bed.path());
    if reflinks {
        let copy = bed.path().join("copy.img");
        guest::reflink_copy(&bed.path().join("random.img"), &copy);
        let written = guest::open_direct(&copy).unwrap();
        for n in (0..64).map(|n| 100 * n) {
            written
                .write_all_at(&guest::Aligned::block(), n * BLOCK)
                .unwrap();
        }
        files.push(copy);
    }
    let report = report([bed.path()]);
    files.sort();
    assert_eq!(report.paths(), files);
    let counts: Vec<_> = report
        .images()
        .iter()
        .map(|i| i["extents"].as_u64())
        .collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    for file in &files {
        let image = report.image(file);
        let expected = tools::xfs_io_stat_nextents(file);
        assert_eq!(image["extents"], expected, "{}", file.display());
        assert_eq!(image["extent_limit"], extent_limit);
        assert_eq!(image["format"], "raw");
        assert_facts(image, file);
        assert_filesystem(image, bed, "xfs");
        // Without shared blocks all three ways of counting agree. The last one writes out.
        if !file.ends_with("copy.img") && !file.ends_with("random.img") {
            let listed = tools::filefrag_extents(file).len() as u64;
            assert_eq!(listed, expected, "{}", file.display());
            assert_eq!(tools::xfs_io_fiemap_count(file), listed);
        }
    }
    let delayed = report.image(&bed.path().join("delayed.img"));
    assert_eq!(delayed["extents"], 100);
    let discarded = report.image(&bed.path().join("discarded.img"));
    assert!(discarded["extents"].as_u64() > Some(1500));
}

const LIMIT_32: u64 = (1 << 31) - 1;
const LIMIT_64: u64 = (1 << 48) - 1;

#[test]
fn counts_agree_on_xfs_without_reflinks() {
    let features = ["-m", "reflink=0", "-i", "nrext64=0"];
    let bed = support::require!(Bed::xfs_with(&features));
    counts_agree_on_xfs(&bed, false, LIMIT_32);
}

#[test]
fn counts_agree_on_xfs_with_all_its_trees() {
    let features = ["-m", "rmapbt=1,reflink=1", "-i", "nrext64=1"];
    let bed = support::require!(Bed::xfs_with(&features));
    counts_agree_on_xfs(&bed, true, LIMIT_64);
}

#[test]
fn counts_agree_on_xfs_of_the_old_format() {
    let agree = |bed| counts_agree_on_xfs(&bed, false, LIMIT_32);
    support::here_or_elsewhere!(Bed::xfs_v4(), agree);
}

fn counts_agree_elsewhere(bed: &Bed, kind: &str) {
    let files = fragmented(bed.path());
    // What the kernel writes out in between would change a count.
    bed.sync();
    let list = || -> Vec<usize> {
        let listed = files.iter().map(|f| tools::filefrag_extents(f).len());
        listed.collect()
    };
    let (listed, report) = undisturbed(list, || report([bed.path()]));
    assert_eq!(report.paths(), files);
    for (file, listed) in std::iter::zip(&files, listed) {
        let image = report.image(file);
        assert_eq!(image["extents"], listed, "{}", file.display());
        if kind != "ext4" {
            assert_eq!(tools::xfs_io_fiemap_count(file), listed as u64);
        }
        assert_eq!(image["extent_limit"], Value::Null);
        assert_eq!(image["extent_map_memory_bytes"], Value::Null);
        assert_facts(image, file);
        assert_filesystem(image, bed, kind);
    }
    // More than one chunk of FIEMAP.
    let random = report.image(&bed.path().join("random.img"));
    assert!(random["extents"].as_u64() > Some(2048), "{random:#}");
}

#[test]
fn counts_agree_on_ext4() {
    counts_agree_elsewhere(&support::require!(Bed::ext4()), "ext4");
}

#[test]
fn counts_agree_on_btrfs() {
    counts_agree_elsewhere(&support::require!(Bed::btrfs()), "btrfs");
}

#[test]
fn hints_are_those_in_force() {
    let bed = support::require!(Bed::xfs());
    let dir = bed.path().join("hinted");
    fs::create_dir(&dir).unwrap();
    let before = dir.join("before.img");
    fs::write(&before, "text").unwrap();
    tools::set_extent_size_hint(&dir, MIB);
    let after = dir.join("after.img");
    fs::write(&after, "text").unwrap();
    let other = bed.path().join("other.img");
    fs::write(&other, "text").unwrap();
    tools::set_extent_size_hint(&dir, 64 * KIB);

    let report = report([bed.path()]);
    for (file, hint, directory) in [
        (&before, 0, 64 * KIB),
        (&after, MIB, 64 * KIB),
        (&other, 0, 0),
    ] {
        let image = report.image(file);
        assert_eq!(image["extent_size_hint_bytes"], hint, "{image:#}");
        assert_eq!(image["directory_extent_size_hint_bytes"], directory);
    }
}

#[test]
fn severity_is_that_of_the_thresholds() {
    let bed = support::require!(Bed::xfs());
    for extents in [99, 100, 199, 200] {
        guest::alternate_blocks(&bed.path().join(format!("{extents}.img")), extents);
    }
    let thresholds = "[thresholds]\nwarning = { extents = 100 }\ncritical = { extents = 200 }";
    let config = config(bed.path(), thresholds);
    let report = whole(scan_with(&config).arg(bed.path()));
    let severities: Vec<_> = report
        .images()
        .iter()
        .map(|image| image["severity"].as_str().unwrap())
        .collect();
    assert_eq!(severities, ["critical", "warning", "warning", "ok"]);
}

/// The calls that touch an image when it is counted.
#[test]
fn a_count_is_three_calls_and_many_extents_are_not_looked_into() {
    let bed = support::require!(Bed::xfs());
    support::require!(tools::have("strace"));
    let [few, many] = ["few", "many"].map(|name| bed.path().join(name));
    guest::alternate_blocks(&many, 10_001);
    // The same without a name or a header that would make it an image, but few enough to look.
    guest::alternate_blocks(&few, 10_000);
    let log = bed.path().join("log.txt");
    let scan = scan(["--json", "--min-size", "0B", bed.path().to_str().unwrap()]);

    let calls = traced(&scan, &many, &log);
    // The one between is XFS_IOC_FSGEOMETRY, which strace shows by its number: see big_image.rs.
    let counted = ["FS_IOC_FSGETXATTR", "_IOC(_IOC_READ", "FS_IOC_GETVERSION"];
    assert_eq!(calls, counted);
    let calls = traced(&scan, &few, &log);
    assert_eq!(calls, [counted.as_slice(), &["pread64"]].concat());

    fs::remove_file(log).unwrap();
    let report = report([bed.path()]);
    assert_eq!(report.paths(), std::slice::from_ref(&many));
    assert_eq!(report.image(&many)["format"], "unknown");
    assert_eq!(report.image(&many)["extents"], 10_001);
    assert_eq!(report.0["passed_over"]["not_an_image"], 1);
}

#[test]
fn formats_are_told_by_what_a_file_holds() {
    let bed = support::require!(Bed::xfs());
    let qemu_img = support::require!(tools::have("qemu-img"));
    for format in ["qcow2", "vmdk", "vdi", "vhdx", "raw"] {
        for name in [format.to_owned(), format!("{format}.img")] {
            let mut create = Command::new(&qemu_img);
            create.args(["create", "-q", "-f", format]);
            create.arg(bed.path().join(name)).arg("64M");
            assert!(create.status().unwrap().success());
        }
    }
    // No image, whatever its name or its size.
    fs::write(
        bed.path().join("notes.qcow2"),
        "QFI, but not in the right place",
    )
    .unwrap();
    fs::write(bed.path().join("empty"), "").unwrap();
    fs::write(bed.path().join("short"), "QFI").unwrap();

    let report = report([bed.path()]);
    for format in ["qcow2", "vmdk", "vdi", "vhdx"] {
        for name in [format.to_owned(), format!("{format}.img")] {
            assert_eq!(report.image(&bed.path().join(name))["format"], format);
        }
    }
    // Without a header only the name tells.
    assert_eq!(report.image(&bed.path().join("raw.img"))["format"], "raw");
    assert_eq!(report.images().len(), 9);
    assert_eq!(report.0["passed_over"]["not_an_image"], 4);
}

/// What other hypervisors write, made by qemu-img: without a suffix where the header shows it.
#[test]
fn images_of_other_hypervisors_are_known() {
    let bed = support::require!(Bed::xfs());
    let qemu_img = support::require!(tools::have("qemu-img"));
    let create = |format: &str, options: &[&str], name: &str| {
        let mut create = Command::new(&qemu_img);
        create.current_dir(bed.path());
        create.args(["create", "-q", "-f", format]).args(options);
        assert!(
            create.arg(name).arg("64M").status().unwrap().success(),
            "{name}"
        );
    };
    create("vpc", &["-o", "subformat=fixed"], "vhd-fixed");
    create("vpc", &["-o", "subformat=dynamic"], "vhd-dynamic");
    create("qed", &[], "qed");
    create("parallels", &[], "parallels");
    let secret = [
        "--object",
        "secret,id=s,data=x",
        "-o",
        "key-secret=s,iter-time=10",
    ];
    create("luks", &secret, "luks");
    for (subformat, file) in [
        ("monolithicSparse", "vmdk-sparse"),
        ("streamOptimized", "vmdk-stream"),
        ("monolithicFlat", "flat.vmdk"),
        ("twoGbMaxExtentFlat", "split.vmdk"),
    ] {
        create("vmdk", &["-o", &format!("subformat={subformat}")], file);
    }
    let data = ["-o", "data_file=data of q,data_file_raw=on"];
    create("qcow2", &data, "external.qcow2");
    let data = File::options()
        .write(true)
        .open(bed.path().join("data of q"));
    data.unwrap().write_all_at(&[1; 4096], 0).unwrap();

    let report = report([bed.path()]);
    for (name, format) in [
        ("vhd-fixed", "vhd"),
        ("vhd-dynamic", "vhd"),
        ("qed", "qed"),
        ("parallels", "parallels"),
        ("luks", "luks"),
        ("vmdk-sparse", "vmdk"),
        ("vmdk-stream", "vmdk"),
        ("flat-flat.vmdk", "vmdk"),
        ("split-f001.vmdk", "vmdk"),
        ("external.qcow2", "qcow2"),
        ("data of q", "raw"),
    ] {
        assert_eq!(
            report.image(&bed.path().join(name))["format"],
            format,
            "{name}"
        );
    }
    // What holds the data counts, however small the file that names it.
    let disks = [
        "data of q",
        "flat-flat.vmdk",
        "split-f001.vmdk",
        "vhd-fixed",
    ];
    let paths = format!("min_size = \"8MiB\"\npaths = [{:?}]\n", bed.path());
    let config = bed.path().parent().unwrap().join("fragwatch.toml");
    fs::write(&config, format!("[images]\n{paths}")).unwrap();
    let found = whole(&mut scan_with(&config));
    let found: Vec<_> = names(&found.paths(), &bed);
    for disk in disks {
        assert!(found.iter().any(|name| name == disk), "{disk}: {found:?}");
    }
    assert!(!found.iter().any(|name| name == "flat.vmdk"), "{found:?}");
    fs::write(
        &config,
        format!("[images]\nexclude = [\"*-flat.vmdk\", \"external*\"]\n{paths}"),
    )
    .unwrap();
    let found = names(&whole(&mut scan_with(&config)).paths(), &bed);
    assert!(
        !found
            .iter()
            .any(|name| name == disks[0] || name == disks[1]),
        "{found:?}"
    );
    // Named, it comes with them.
    let flat = ["flat.vmdk", "flat-flat.vmdk"].map(|name| bed.path().join(name));
    let found = self::report([&flat[0]]);
    assert_eq!(found.images().len(), 2);
    assert_eq!(found.image(&flat[1])["format"], "vmdk");
}

/// A header can name any file: a guest writes it.
#[test]
fn a_header_names_no_file_elsewhere() {
    let bed = support::require!(Bed::xfs());
    let outside = bed.path().join("outside");
    fs::write(&outside, "private").unwrap();
    let vms = bed.path().join("vms");
    fs::create_dir(&vms).unwrap();
    symlink(&outside, vms.join("link")).unwrap();
    fs::write(vms.join("inside"), "data").unwrap();
    let mut text = String::from("# Disk DescriptorFile\n");
    let absolute = outside.display().to_string();
    let inside = vms.join("inside").display().to_string();
    for file in [
        "../outside",
        &absolute,
        "link",
        ".",
        "..",
        "",
        "/",
        "a.vmdk",
        &inside,
    ] {
        text += &format!("RW 63 FLAT \"{file}\" 0\n");
    }
    fs::write(vms.join("a.vmdk"), text).unwrap();
    let report = report([&vms]);
    assert_eq!(report.paths(), [vms.join("a.vmdk"), vms.join("inside")]);
}

#[test]
fn a_partition_table_makes_an_image() {
    let bed = support::require!(Bed::xfs());
    let sfdisk = support::require!(tools::have("sfdisk"));
    for (name, label) in [("dos", "dos"), ("gpt", "gpt"), ("none", "")] {
        let path = bed.path().join(name);
        File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        if label.is_empty() {
            continue;
        }
        let mut sfdisk = Command::new(&sfdisk);
        sfdisk.arg("--quiet").arg(&path).stdin(Stdio::piped());
        let mut child = sfdisk.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        write!(input, "label: {label}\n,32M\n,\n").unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
    }
    let report = report([bed.path()]);
    assert_eq!(
        report.paths(),
        ["dos", "gpt"].map(|name| bed.path().join(name))
    );
    assert_eq!(report.image(&bed.path().join("gpt"))["format"], "raw");
}

/// The names of the images that are found with `lines` in the configuration.
fn found_with(lines: &str, bed: &Bed) -> Vec<String> {
    let config = config(bed.path(), lines);
    let report = whole(&mut scan_with(&config));
    names(&report.paths(), bed)
}

fn names(paths: &[PathBuf], bed: &Bed) -> Vec<String> {
    let name = |path: &PathBuf| path.strip_prefix(bed.path()).unwrap().display().to_string();
    paths.iter().map(name).collect()
}

#[test]
fn what_is_configured_is_found() {
    let bed = support::require!(Bed::xfs());
    let at = |name: &str| bed.path().join(name);
    let here = bed.path().display();
    for name in [
        "pool-1/a.raw",
        "pool-1/deep/er/b.IMG",
        "pool-2/c.disk",
        "pool-2/.hidden/d.img",
        "pool-2/e.iso",
        "pool-2/f.txt",
        "other/g.img",
        "[odd]/h.img",
    ] {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), name).unwrap();
    }
    let all = [
        "[odd]/h.img",
        "other/g.img",
        "pool-1/a.raw",
        "pool-1/deep/er/b.IMG",
        "pool-2/.hidden/d.img",
        "pool-2/c.disk",
    ];
    let found = |lines: &str| found_with(lines, &bed);

    assert_eq!(found(&format!("paths = ['{here}']")), all);
    assert_eq!(found("paths = []"), [""; 0]);
    // Globs in paths.
    assert_eq!(found(&format!("paths = ['{here}/pool-*']")), all[2..]);
    assert_eq!(
        found(&format!("paths = ['{here}/pool-?/*.{{raw,disk}}']")),
        [all[2], all[5]]
    );
    assert_eq!(found(&format!("paths = ['{here}/**/*.IMG']")), [all[3]]);
    assert_eq!(found(&format!("paths = ['{here}/nothing-*']")), [""; 0]);
    assert_eq!(found(&format!("paths = ['{here}/[[]odd]']")), [all[0]]);
    // A file named is an image, whatever it is, unless a glob found it in a directory.
    assert_eq!(
        found(&format!("paths = ['{here}/pool-2/f.txt']")),
        ["pool-2/f.txt"]
    );
    // Named twice, also by another way, is found once.
    let twice = format!("paths = ['{here}', '{here}/pool-1', '{here}/other/../other/g.img']");
    assert_eq!(found(&twice), all);
    // Include and exclude.
    let with = |lines: &str| found(&format!("paths = ['{here}']\n{lines}"));
    assert_eq!(with("include = ['*.txt']"), ["pool-2/f.txt"]);
    assert_eq!(
        with("exclude = ['deep', '*.disk', '**/other/*']"),
        [all[0], all[2], all[4]]
    );
    assert_eq!(with("include = ['*.iso', '*.raw']"), ["pool-1/a.raw"; 1]);
    assert_eq!(with("exclude = []\ninclude = ['*.iso']"), ["pool-2/e.iso"]);
    assert_eq!(with("include = ['*.raw']\nexclude = ['pool-1']"), [""; 0]);
}

#[test]
fn small_files_are_left_out_unless_named() {
    let bed = support::require!(Bed::xfs());
    let [small, large] = ["small.img", "large.img"].map(|name| bed.path().join(name));
    File::create(&small).unwrap().set_len(MIB - 1).unwrap();
    File::create(&large).unwrap().set_len(MIB).unwrap();
    let scan = |path: &Path| whole(scan(["--json", "--min-size", "1MiB"]).arg(path));
    let report = scan(bed.path());
    assert_eq!(report.paths(), std::slice::from_ref(&large));
    assert_eq!(report.0["passed_over"]["too_small"], 1);
    assert_eq!(scan(&small).paths(), [small]);
}

#[test]
fn links_are_followed_from_the_configured_path_only() {
    let bed = support::require!(Bed::xfs());
    let other = support::require!(Bed::ext4());
    let at = |name: &str| bed.path().join(name);
    fs::create_dir(at("pool")).unwrap();
    fs::write(at("pool/vm.img"), "text").unwrap();
    fs::write(at("outside.img"), "text").unwrap();
    fs::write(other.path().join("far.img"), "text").unwrap();
    symlink("pool", at("link")).unwrap();
    symlink(at("link/vm.img"), at("chain")).unwrap();
    symlink("../outside.img", at("pool/to-file.img")).unwrap();
    symlink("..", at("pool/to-directory")).unwrap();
    symlink(".", at("pool/loop")).unwrap();
    symlink(other.path(), at("elsewhere")).unwrap();

    for path in [at("link"), at("chain"), at("pool/loop/loop/../pool")] {
        assert_eq!(report([path]).paths(), [at("pool/vm.img")]);
    }
    assert_eq!(
        report([at("pool/to-file.img")]).paths(),
        [at("outside.img")]
    );
    assert_eq!(
        report([at("elsewhere")]).paths(),
        [other.path().join("far.img")]
    );
    // The shortest way from the command line, and one that is no path from the root.
    let mut relative = scan(["--json", "--min-size", "0B", "link/./"]);
    assert_eq!(
        whole(relative.current_dir(bed.path())).paths(),
        [at("pool/vm.img")]
    );
    // A glob in the configuration follows links as a shell does.
    let found = found_with(&format!("paths = ['{}/l*']", bed.path().display()), &bed);
    assert_eq!(found, ["pool/vm.img"]);
}

#[test]
fn hard_links_and_bind_mounts_show_an_image_once() {
    let bed = support::require!(Bed::xfs());
    let at = |name: &str| bed.path().join(name);
    for dir in ["pool", "other"] {
        fs::create_dir(at(dir)).unwrap();
    }
    fs::write(at("pool/vm.img"), "text").unwrap();
    fs::write(at("pool/no-image"), "text").unwrap();
    fs::hard_link(at("pool/vm.img"), at("pool/same.img")).unwrap();
    fs::hard_link(at("pool/vm.img"), at("other/same.img")).unwrap();
    assert_eq!(report([bed.path()]).images().len(), 1);

    let _shown = support::require!(BindMount::new(&at("pool"), &at("shown")));
    let _again = support::require!(BindMount::new(bed.path(), &at("again")));
    let report = report([at("shown"), at("again"), bed.path().to_owned()]);
    assert_eq!(report.images().len(), 1);
    assert_eq!(
        report.images()[0]["filesystem"]["mount"],
        bed.path().to_str().unwrap()
    );
}

#[test]
fn a_file_system_behind_another_is_known_by_where_it_is_seen() {
    let bed = support::require!(Bed::xfs());
    let top = support::require!(Bed::ext4());
    fs::write(bed.path().join("vm.img"), "text").unwrap();
    // Its first mount point has the shorter path, but something else is seen there.
    let place = bed.path().parent().unwrap().join("a longer name");
    let _shown = support::require!(BindMount::new(bed.path(), &place));
    let _hides = support::require!(BindMount::new(top.path(), bed.path()));
    let report = report([&place]);
    let image = report.image(&place.join("vm.img"));
    assert_eq!(image["filesystem"]["mount"], place.to_str().unwrap());
    assert_eq!(image["filesystem"]["uuid"], uuid(&bed));
    assert_eq!(image["filesystem"]["type"], "xfs");
}

#[test]
fn a_file_system_beneath_another_is_not_seen() {
    let bed = support::require!(Bed::xfs());
    let lower = support::require!(Bed::ext4());
    fs::write(bed.path().join("vm.img"), "text").unwrap();
    let place = bed.path().parent().unwrap().join("place");
    let top = support::require!(BindMount::new(bed.path(), &place));
    let below = support::require!(BindMount::beneath(lower.path(), &place));
    let report = report([&place]);
    let image = report.image(&place.join("vm.img"));
    assert_eq!(image["filesystem"]["uuid"], uuid(&bed));
    assert_eq!(image["filesystem"]["type"], "xfs");
    drop(top);
    drop(below);
}

#[test]
fn mounts_below_a_directory_are_searched_too() {
    let [bed, inner] = [Bed::xfs(), Bed::ext4()];
    let (bed, inner) = (support::require!(bed), support::require!(inner));
    let btrfs = support::require!(Bed::btrfs());
    for (bed, name) in [
        (&bed, "outer.img"),
        (&inner, "inner.img"),
        (&btrfs, "innermost.img"),
    ] {
        guest::sequential(&bed.path().join(name), 4 * BLOCK);
    }
    let nested = bed.path().join("a/nested");
    let _nested = support::require!(BindMount::new(inner.path(), &nested));
    let _innermost = support::require!(BindMount::new(btrfs.path(), &nested.join("btrfs")));
    // Nothing of anybody, and no fault.
    let _proc = support::require!(BindMount::new(Path::new("/proc"), &bed.path().join("proc")));

    let report = report([bed.path()]);
    for (path, kind) in [
        (bed.path().join("outer.img"), "xfs"),
        (nested.join("inner.img"), "ext4"),
        (nested.join("btrfs/innermost.img"), "btrfs"),
    ] {
        assert_eq!(report.image(&path)["filesystem"]["type"], kind);
        assert_eq!(report.image(&path)["extents"], 1);
    }
    assert_eq!(report.images().len(), 3);
}

#[test]
fn what_qemu_has_open_is_an_image() {
    let bed = support::require!(Bed::xfs());
    let sleep = support::require!(tools::have("sleep"));
    let [volume, ours, foreign] = ["volume", "ours", "foreign"].map(|name| {
        let path = bed.path().join(name);
        fs::write(&path, name).unwrap();
        path
    });
    let programs = bed.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let run = |name: &str, held: &Path| {
        let program = programs.join(name);
        copy_program(&sleep, &program);
        // Once it is spawned it bears the program's name.
        Child::spawn(
            Command::new(&program)
                .arg("600")
                .stdin(File::open(held).unwrap())
                .stdout(Stdio::null()),
        )
        .unwrap()
    };
    let _other = run("not-qemu", &foreign);
    let qemu = run("qemu-system-x86_64", &volume);
    let _kvm = run(".kvm-wrapped", &ours);
    let _user_mode = run("qemu-x86_64-static", &foreign);
    let report = report([bed.path()]);
    assert_eq!(report.paths(), [ours.clone(), volume.clone()]);
    assert_eq!(report.image(&volume)["format"], "raw");
    drop(qemu);
    assert_eq!(self::report([bed.path()]).paths(), [ours]);
}

#[test]
fn an_image_in_use_can_be_counted_as_it_grows() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    let mut file = File::create(&path).unwrap();
    file.set_len(MIB).unwrap();
    for n in 1..=5 {
        file.write_all_at(&[1; 4096], 2 * n * BLOCK).unwrap();
        file.flush().unwrap();
        file.sync_all().unwrap();
        assert_eq!(report([&path]).image(&path)["extents"], n);
    }
}

#[test]
fn the_table_says_what_the_json_says() {
    let bed = support::require!(Bed::xfs());
    guest::alternate_blocks(&bed.path().join("many.img"), 1234);
    guest::sequential(&bed.path().join("one.img"), MIB);
    let said = Said::by(scan(["--min-size", "0B"]).arg(bed.path()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let cells = |line: &str| -> Vec<String> {
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    let mut lines = said.out.lines();
    let header = cells(lines.next().unwrap());
    let expected = [
        "IMAGE",
        "EXTENTS",
        "MEAN",
        "SIZE",
        "ALLOCATED",
        "MAP MEMORY",
        "VM",
        "SEVERITY",
    ];
    assert_eq!(header, expected);
    let row = cells(lines.next().unwrap());
    let path = bed.path().join("many.img").display().to_string();
    // 1234 extents in 83 leaves, 6 nodes above them and the root, of 256 bytes each.
    let expected = [
        &path, "1,234", "4.0 KiB", "9.6 MiB", "4.8 MiB", "22.5 KiB", "–", "ok",
    ];
    assert_eq!(row, expected);
    let row = cells(lines.next().unwrap());
    assert_eq!(
        row[1..],
        ["1", "1.0 MiB", "1.0 MiB", "1.0 MiB", "16 B", "–", "ok"]
    );
    let below: String = lines.collect();
    assert!(below.starts_with("2 images with 1,235 extents"), "{below}");
}
