//! What a host can put in the way of a scan: names, files that are none, files that change, rights.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy knows the tests, but not what they call"
)]

mod support;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use support::expect::{Report, Said, copy_program, report, scan, whole};
use support::guest::{self, BLOCK};
use support::{Bed, MIB, tools};

/// Names that are trouble for whoever prints them.
const ODD: [&[u8]; 10] = [
    b"new\nline.img",
    b"tab\tand\rreturn.img",
    b"\"quoted\" 'twice'.img",
    b"back\\slash\\x0a.img",
    b"not utf8 \xff\xfe.img",
    b"\x1b[31mred\x1b[0m.img",
    "right \u{202e}to left.img".as_bytes(),
    b" leading and trailing .img",
    b"-rf.img",
    b"100%25.img",
];

/// The exact path that an object of the JSON is about.
fn exact(object: &Value) -> PathBuf {
    let Some(hex) = object["path_hex"].as_str() else {
        return PathBuf::from(object["path"].as_str().unwrap());
    };
    let digits = hex
        .as_bytes()
        .chunks(2)
        .map(|two| std::str::from_utf8(two).unwrap());
    let bytes: Vec<u8> = digits
        .map(|two| u8::from_str_radix(two, 16).unwrap())
        .collect();
    PathBuf::from(OsString::from_vec(bytes))
}

/// Text that upsets no terminal and no reader of lines.
#[track_caller]
fn assert_printable(text: &str) {
    let upsets = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(upsets), "{text:?}");
}

#[test]
fn odd_names_are_one_line_and_exact() {
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let mut files = ODD.map(|name| bed.path().join(OsStr::from_bytes(name)));
        files.sort();
        files
            .iter()
            .for_each(|file| guest::alternate_blocks(file, 3));

        // In a directory, and each named.
        for paths in [vec![bed.path().to_owned()], files.to_vec()] {
            let report = report(&paths);
            let mut found: Vec<_> = report.images().iter().map(exact).collect();
            found.sort();
            assert_eq!(found, files);
            assert!(report.images().iter().all(|image| image["extents"] == 3));

            let said = Said::by(scan(["--map", "--min-size", "0B"]).args(&paths));
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
            assert_printable(&said.out);
            let rows = said
                .out
                .lines()
                .filter(|line| line.ends_with(" ok"))
                .count();
            assert_eq!(rows, files.len(), "{}", said.out);
        }

        // As errors.
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
        let said = Said::by(scan(["--json"]).args(&files));
        assert_eq!((said.code, said.err.as_str()), (Some(1), ""));
        let report = said.json();
        let mut missing: Vec<_> = report.0["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(exact)
            .collect();
        missing.sort();
        assert_eq!(missing, files);
        let said = Said::by(scan([] as [&str; 0]).args(&files));
        assert_eq!(said.code, Some(1));
        assert_printable(&said.err);
        let lines = said.err.lines();
        let told = lines.filter(|line| line.ends_with(".img: No such file or directory"));
        assert_eq!(
            (told.count(), said.err.lines().count()),
            (ODD.len(), ODD.len())
        );
    }
}

#[test]
fn a_directory_of_an_odd_name_is_searched() {
    let bed = support::require!(Bed::xfs());
    for name in ODD {
        let dir = bed.path().join(OsStr::from_bytes(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("vm.img"), "text").unwrap();
    }
    assert_eq!(report([bed.path()]).images().len(), ODD.len());
}

/// Makes things in `dir` that are no files and returns them with what is said of them.
fn no_files(dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let [fifo, socket, device] = ["fifo.img", "socket.img", "device.img"].map(|n| dir.join(n));
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    // 1:3 is /dev/null.
    let null = rustix::fs::makedev(1, 3);
    mknodat(CWD, &device, FileType::CharacterDevice, mode, null).unwrap();
    for link in ["loop.img", "loop2.img"] {
        symlink("loop.img", dir.join(link)).unwrap();
    }
    symlink("nothing", dir.join("dangling.img")).unwrap();
    vec![
        (fifo, "is a FIFO, not a regular file"),
        (socket, "is a socket, not a regular file"),
        (device, "is a character device, not a regular file"),
        (dir.join("loop2.img"), "Too many levels of symbolic links"),
        (dir.join("nothing"), "No such file or directory"),
    ]
}

#[test]
fn what_is_no_file_is_told_and_the_rest_goes_on() {
    let bed = support::require!(Bed::xfs());
    let dir = bed.path().join("pool");
    fs::create_dir(&dir).unwrap();
    let image = dir.join("vm.img");
    fs::write(&image, "text").unwrap();
    let mut wrong = no_files(&dir);
    // Found in a directory they are no images, and nothing is wrong.
    assert_eq!(report([&dir]).paths(), std::slice::from_ref(&image));

    let holds_none = |kind| match kind {
        "proc" => "lies on proc, which holds no disk images",
        _ => "lies on sysfs, which holds no disk images",
    };
    wrong.extend([
        (PathBuf::from("/proc"), holds_none("proc")),
        (PathBuf::from("/proc/self/maps"), holds_none("proc")),
        (PathBuf::from("/sys"), holds_none("sysfs")),
        (image.join("below"), "Not a directory"),
        (bed.path().join("vanished"), "No such file or directory"),
    ]);
    for (path, reason) in &wrong {
        let said = Said::by(scan(["--json"]).arg(path).arg(&image));
        assert_eq!(
            (said.code, said.err.as_str()),
            (Some(1), ""),
            "{}",
            path.display()
        );
        let report = said.json();
        assert_eq!(report.errors().len(), 1, "{said:?}");
        assert_eq!(report.errors()[0].1, *reason, "{}", path.display());
        assert_eq!(report.paths(), std::slice::from_ref(&image));
    }
    // All of them together, as text: each on its own line.
    let said = Said::by(scan([] as [&str; 0]).args(wrong.iter().map(|(path, _)| path)));
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(1), "No disk image found.\n")
    );
    assert_eq!(said.err.lines().count(), wrong.len());

    // A device node on the host, of a mounted file system at that.
    let said = Said::by(scan(["--json"]).arg(bed.device()).arg(&image));
    assert_eq!(said.code, Some(1));
    assert_eq!(said.json().errors().len(), 1);
    assert_eq!(said.json().images().len(), 1);
}

#[test]
fn an_empty_directory_and_one_that_can_only_be_read() {
    let bed = support::require!(Bed::xfs());
    let said = Said::by(scan([] as [&str; 0]).arg(bed.path()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    assert_eq!(said.out, "No disk image found.\n");

    let path = bed.path().join("vm.img");
    guest::random_direct_writes(&path, 16 * MIB, 100);
    bed.remount_ro();
    let found = whole(scan(["--json", "--map", "--min-size", "0B"]).arg(bed.path()));
    assert_eq!(
        found.image(&path)["extents"],
        tools::xfs_io_stat_nextents(&path)
    );
    let said = Said::by(scan(["--json", "--census"]).arg(bed.path()));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
}

#[test]
fn directories_nested_without_end_end() {
    let bed = support::require!(Bed::xfs());
    let mut dir = bed.path().to_owned();
    for n in 0..300 {
        fs::create_dir(&dir)
            .or_else(|e| if n == 0 { Ok(()) } else { Err(e) })
            .unwrap();
        if [0, 100, 299].contains(&n) {
            fs::write(dir.join("vm.img"), "text").unwrap();
        }
        dir.push("d");
    }
    let said = Said::by(scan(["--json", "--min-size", "0B"]).arg(bed.path()));
    assert_eq!(said.code, Some(1));
    let report = said.json();
    assert_eq!(report.images().len(), 2);
    assert_eq!(report.errors().len(), 1);
    assert_eq!(
        report.errors()[0].1,
        "nested too deep; not searched any further"
    );
}

/// A command as a user who is nobody runs it: the program lies where he can read it.
fn as_nobody(bed: &Bed) -> Command {
    let program = bed.path().join("fragwatch");
    copy_program(env!("CARGO_BIN_EXE_fragwatch"), &program);
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .args(["scan", "--json", "--min-size", "0B"]);
    command
}

#[test]
fn runs_without_root_wherever_files_can_be_read() {
    support::require!(tools::have("setpriv"));
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let pool = bed.path().join("pool");
        fs::create_dir(&pool).unwrap();
        let path = pool.join("vm.img");
        guest::random_direct_writes(&path, 16 * MIB, 1000);
        let expected = tools::filefrag_extents(&path).len();
        let found = whole(as_nobody(&bed).arg("--map").arg(&pool));
        let image = found.image(&path);
        assert_eq!(image["extents"], expected);
        assert_eq!(image["map"]["extents"], expected);
        assert!(image["filesystem"]["uuid"].is_string(), "{image:#}");

        // A directory that may be passed but not read: its files can be named.
        fs::set_permissions(&pool, Permissions::from_mode(0o711)).unwrap();
        assert_eq!(
            whole(as_nobody(&bed).arg(&path)).image(&path)["extents"],
            expected
        );
    }
}

#[test]
fn what_must_not_be_read_is_told_and_the_rest_goes_on() {
    support::require!(tools::have("setpriv"));
    for bed in [Bed::xfs(), Bed::ext4()] {
        let bed = support::require!(bed);
        let at = |name: &str| bed.path().join("pool").join(name);
        fs::create_dir_all(at("closed/deeper")).unwrap();
        for name in [
            "a.img",
            "b.img",
            "c.img",
            "closed/d.img",
            "secret.img",
            "secret",
        ] {
            fs::write(at(name), name).unwrap();
        }
        for name in ["closed", "secret.img", "secret"] {
            fs::set_permissions(at(name), Permissions::from_mode(0o700)).unwrap();
        }
        let mut command = as_nobody(&bed);
        let said = Said::by(command.arg(at("")).arg(at("closed/d.img")));
        assert_eq!((said.code, said.err.as_str()), (Some(1), ""));
        let report = said.json();
        assert_eq!(report.paths(), ["a.img", "b.img", "c.img"].map(at));
        let mut errors = report.errors();
        errors.sort_unstable();
        let paths: Vec<_> = errors.iter().map(|(path, _)| PathBuf::from(path)).collect();
        let expected = ["closed", "closed/d.img", "secret", "secret.img"].map(at);
        assert_eq!(paths, expected);
        assert!(
            errors.iter().all(|(_, why)| *why == "Permission denied"),
            "{errors:?}"
        );
    }
}

/// Changes the files of `dir` in every way that a host does, until it is told to stop. Returns how
/// many changes it made.
fn churn(dir: &Path, stop: &AtomicBool) -> u64 {
    let mut changes = 0;
    let mut number = 0x2545_f491_4f6c_dd1d_u64;
    while !stop.load(Ordering::Relaxed) {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        let path = dir.join(format!("{}.img", number % 5));
        let other = dir.join(format!("{}.img", number / 8 % 5));
        // What is in the way, or is not there, is no matter.
        let _ = match number / 64 % 9 {
            0 => fs::rename(&path, &other),
            1 => fs::remove_file(&path),
            2 => fs::create_dir(&path),
            3 => fs::remove_dir_all(&path),
            4 => symlink(&other, &path),
            5 => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).map_err(Into::into),
            6 => truncate(&path, number / 1024 % (1000 * BLOCK)),
            _ => write_apart(&path),
        };
        changes += 1;
    }
    changes
}

fn regular(path: &Path) -> std::io::Result<File> {
    // A FIFO would wait for a reader.
    if path.symlink_metadata().is_ok_and(|m| !m.is_file()) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn truncate(path: &Path, size: u64) -> std::io::Result<()> {
    regular(path)?.set_len(size)
}

fn write_apart(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let file = regular(path)?;
    for n in 0..300 {
        fallocate(&file, FallocateFlags::empty(), 2 * n * BLOCK, BLOCK)?;
    }
    Ok(())
}

#[test]
fn files_may_change_while_they_are_counted() {
    for bed in [Bed::xfs(), Bed::ext4(), Bed::btrfs()] {
        let bed = support::require!(bed);
        let [stable, moving] = ["stable", "moving"].map(|name| bed.path().join(name));
        for dir in [&stable, &moving] {
            fs::create_dir(dir).unwrap();
        }
        for n in 1..=5 {
            guest::alternate_blocks(&stable.join(format!("{n}.img")), 500 * n);
        }
        bed.sync();
        let counted = |report: &Report| -> Vec<(PathBuf, Value)> {
            let images = report
                .images()
                .iter()
                .map(|i| (exact(i), i["extents"].clone()));
            images
                .filter(|(path, _)| path.starts_with(&stable))
                .collect()
        };
        let expected = counted(&report([&stable]));
        assert_eq!(expected.len(), 5);

        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let churner = scope.spawn(|| churn(&moving, &stop));
            let scans = std::panic::catch_unwind(|| {
                for n in 0..50 {
                    let mut command = scan(["--json", "--min-size", "0B"]);
                    command
                        .args((n % 2 == 0).then_some("--map"))
                        .arg(bed.path());
                    // Named, too: a file that vanishes under the hands of its namer.
                    command.args((n % 3 == 0).then(|| moving.join("1.img")));
                    let said = Said::by(&mut command);
                    let report = said.json();
                    let errors = report.errors();
                    let code = i32::from(!errors.is_empty());
                    assert_eq!((said.code, said.err.as_str()), (Some(code), ""), "{said:?}");
                    for (path, reason) in errors {
                        assert!(Path::new(path).starts_with(&moving), "{path}: {reason}");
                    }
                    assert_eq!(counted(&report), expected);
                    for image in report.images().iter().filter(|i| !i["map"].is_null()) {
                        assert_eq!(image["map"]["complete"], true, "{image:#}");
                    }
                }
            });
            stop.store(true, Ordering::Relaxed);
            let changes = churner.join().unwrap();
            scans.unwrap();
            assert!(changes > 100, "{changes}");
        });
    }
}

#[test]
fn a_path_of_a_replaced_image_shows_the_new_one() {
    let bed = support::require!(Bed::xfs());
    let path = bed.path().join("vm.img");
    let mut inodes = Vec::new();
    for extents in [5, 7] {
        let new = bed.path().join("new");
        guest::alternate_blocks(&new, extents);
        fs::rename(&new, &path).unwrap();
        let report = report([&path]);
        assert_eq!(report.image(&path)["extents"], extents);
        inodes.push(report.image(&path)["inode"].clone());
        assert_eq!(inodes.last().unwrap(), fs::metadata(&path).unwrap().ino());
    }
    assert_ne!(inodes[0], inodes[1]);
}
