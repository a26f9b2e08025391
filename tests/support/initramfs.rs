//! What a VM's kernel unpacks into its memory: the test binary as the first process, the programs
//! that it calls, the libraries of all, and the modules without which the kernel finds no disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::skip::{Here, NotHere};
use super::tools;

/// Modules that a test may need, in the order in which they have to be loaded: for the disk, for a
/// RAM disk, for XFS. What is not there is built in.
pub(super) const MODULES: [&str; 11] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "loop",
    "brd",
    "crc32c_generic",
    "libcrc32c",
    "xfs",
];

/// Where the module is in the guest that is `number` in [`MODULES`].
pub(super) fn module(number: usize) -> PathBuf {
    PathBuf::from(format!("/modules/{number}"))
}

/// The test binary as `/init`, and `files` where they are here, both with the libraries that they are
/// linked against; and the modules below `modules`.
pub(super) fn build(modules: &Path, files: &[PathBuf]) -> Here<Vec<u8>> {
    let mut archive = Archive::default();
    let init = std::env::current_exe().map_err(NotHere::because)?;
    archive.copy("init", &init)?;
    let mut with_libraries = libraries(&init)?;
    for file in files {
        with_libraries.push(file.clone());
        with_libraries.extend(libraries(file)?);
    }
    with_libraries.sort();
    with_libraries.dedup();
    for file in &with_libraries {
        archive.copy(inside(file), file)?;
    }
    for directory in ["dev", "proc", "sys", "tmp", "run"] {
        archive.directory(directory);
    }
    for (number, name) in MODULES.iter().enumerate() {
        if let Some(file) = find(modules, name) {
            let at = module(number).display().to_string();
            archive.file(inside(Path::new(&at)), &unpacked(&file)?);
        }
    }
    Ok(archive.end())
}

/// The path of a file in the archive, which knows no root.
fn inside(file: &Path) -> &str {
    let path = file.to_str().expect("it has a name of the system's");
    path.trim_start_matches('/')
}

/// What a program is linked against, by ldd(1): nothing, if it is none or needs none.
fn libraries(program: &Path) -> Here<Vec<PathBuf>> {
    let ldd = tools::have("ldd")?;
    let output = Command::new(ldd)
        .arg(program)
        .output()
        .map_err(NotHere::because)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths
        .map(PathBuf::from)
        .filter(|path| path.is_file())
        .collect())
}

/// The file of a module, compressed or not.
fn find(below: &Path, module: &str) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(below).ok()?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return find(&entry.path(), module);
        }
        let name = entry.file_name().into_string().ok()?;
        let is_it = name
            .split_once(".ko")
            .is_some_and(|(stem, _)| stem.replace('-', "_") == module);
        is_it.then(|| entry.path())
    })
}

fn unpacked(module: &Path) -> Here<Vec<u8>> {
    let tool = match module.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(module).map_err(NotHere::because),
    };
    let mut command = Command::new(tools::have(tool)?);
    let output = command
        .arg("-dc")
        .arg(module)
        .output()
        .map_err(NotHere::because)?;
    Ok(output.stdout)
}

/// An archive as the kernel unpacks it: cpio, in the format `newc`.
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: Vec<String>,
    entries: u32,
}

impl Archive {
    /// A file as it is here, links followed.
    fn copy(&mut self, path: &str, from: &Path) -> Here<()> {
        let contents = fs::read(from).map_err(NotHere::because)?;
        self.file(path, &contents);
        Ok(())
    }

    fn file(&mut self, path: &str, contents: &[u8]) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, 0o100_755, contents);
    }

    /// With those above it.
    fn directory(&mut self, path: &str) {
        if self.directories.iter().any(|known| known == path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.directories.push(path.to_owned());
        self.entry(path, 0o040_755, &[]);
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let (links, nothing) = (1, 0);
        let fields = [
            self.entries,
            mode,
            nothing,
            nothing,
            links,
            nothing,
            contents.len() as u32,
            nothing,
            nothing,
            nothing,
            nothing,
            path.len() as u32 + 1,
            nothing,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
