//! `fragwatch protect --rewrite` and `--rewrite-finish`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::args::ProtectArguments;
use super::defrag::Signals;
use super::output::{self, INCOMPLETE, SUCCESS};
use super::progress::Progress;
use crate::config::Settings;
use crate::defrag::HostInterfaces;
use crate::defrag::engine::{Event, Request};
use crate::model::path::shown;
use crate::model::{RunForecast, RunOutcome};
use crate::protect::rewrite::{self, Rewrite, Rewritten};
use crate::state_dir::StateDir;

pub(super) fn run(arguments: &ProtectArguments, mut settings: Settings) -> anyhow::Result<u8> {
    settings.defrag.dry_run |= arguments.dry_run;
    let host = HostInterfaces::new(StateDir::of(&settings.history).hints());
    if let Some(image) = &arguments.rewrite_finish {
        let path = absolute(image)?;
        return match rewrite::finish(&path, &host.hints, &host) {
            Ok(kept) => said(&kept, "removed", SUCCESS),
            Err(refusal) => said(&path, &format!("left as it is: {refusal}"), INCOMPLETE),
        };
    }
    let Some(image) = &arguments.rewrite else {
        bail!("nothing to do: name an image with --rewrite or --rewrite-finish");
    };
    let path = absolute(image)?;
    match rewrite(&path, arguments, &settings, &host)? {
        Ok(done) => said(&path, &in_words(&done), SUCCESS),
        Err(RunOutcome::WouldRun {
            forecast: RunForecast::Copy { copies, .. },
        }) => said(
            &path,
            &format!("would be rewritten, into {copies}"),
            SUCCESS,
        ),
        Err(outcome) => {
            let reason = outcome.reason();
            let why = reason.unwrap_or_else(|| "not enough free space".to_owned());
            // It may have been exchanged.
            let how = match outcome {
                RunOutcome::Failed { .. } => "failed",
                _ => "left as it is",
            };
            said(&path, &format!("{how}: {why}"), INCOMPLETE)
        }
    }
}

fn absolute(image: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(image)
        .with_context(|| format!("{}: no path can be made of it", shown(image)))
}

fn said(path: &Path, words: &str, code: u8) -> anyhow::Result<u8> {
    output::print(&format!("{}: {words}\n", shown(path)))?;
    Ok(code)
}

fn rewrite(
    path: &Path,
    arguments: &ProtectArguments,
    settings: &Settings,
    host: &HostInterfaces,
) -> anyhow::Result<Result<Rewritten, RunOutcome>> {
    let signals = Signals::handle()?;
    let state = StateDir::of(&settings.history);
    let mut bar: Option<Progress> = None;
    let name = shown(Path::new(path.file_name().unwrap_or_default()));
    let request = Request {
        path,
        limits: &settings.defrag,
        host,
        orders: &mut || signals.order(),
        watch: &mut |event| {
            if let Event::Notice(text) = event {
                output::eprint_error(&format!("{name}: {text}"));
            }
        },
    };
    Ok(rewrite::run(Rewrite {
        request,
        unshare: arguments.force,
        database: state.database(),
        progress: &mut |done, total| {
            let bar = bar.get_or_insert_with(|| Progress::bytes(total.0));
            bar.at(done.0, name.clone());
        },
    }))
}

fn in_words(done: &Rewritten) -> String {
    let Rewritten {
        from,
        to,
        hint,
        allocated,
        kept,
    } = done;
    format!(
        "{from} → {to} extents, {allocated}, extent-size hint {hint}; the old file is kept as {}",
        shown(kept)
    )
}
