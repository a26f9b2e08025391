//! The node exporter of Debian: installed, or unpacked beside the build without being installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::support::{Here, NotHere, tools};

const PACKAGE: &str = "prometheus-node-exporter";

/// Where the program is.
pub fn program() -> Here<PathBuf> {
    if let Ok(installed) = tools::have(PACKAGE) {
        return Ok(installed);
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGE);
    let program = place.join("usr/bin").join(PACKAGE);
    if !program.exists() {
        unpack(&place)?;
    }
    Ok(program)
}

fn unpack(place: &Path) -> Here<()> {
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place).map_err(NotHere::because)?;
    let download = ["download", PACKAGE];
    tools::run(Command::new("apt-get").args(download).current_dir(place))?;
    let archive = fs::read_dir(place)
        .map_err(NotHere::because)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "deb"))
        .ok_or_else(|| NotHere::because("apt-get has downloaded nothing"))?;
    tools::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(place))
}
