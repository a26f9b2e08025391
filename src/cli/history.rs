//! `fragwatch history IMAGE`: its extents, defragmentations and severities over time.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::args::HistoryArguments;
use super::chart::Chart;
use super::command::load_to_ask;
use super::output::{self, SUCCESS};
use super::{client, status};
use crate::assess::Assessor;
use crate::model::notation::Unit as _;
use crate::model::utc::rfc3339_seconds;
use crate::model::{ExtentCount, Roughly, UnixTime};
use crate::serve::history::{HistoryQuery, HistoryResponse};

/// Columns if the width of the terminal is unknown.
const WIDTH: usize = 80;

pub(super) fn run(arguments: &HistoryArguments, config: Option<&Path>) -> anyhow::Result<u8> {
    let settings = load_to_ask(config);
    let window =
        Duration::parse(&arguments.since).map_err(|error| anyhow::anyhow!("--since: {error}"))?;
    let now = status::now();
    let question = HistoryQuery {
        image: name(&arguments.image)?,
        since: now.before(window),
    };
    let query = serde_urlencoded::to_string(&question)?;
    let past: HistoryResponse = client::get(&settings, &format!("/v1/history?{query}"))?;
    if arguments.json {
        return output::print_json(&past).map(|()| SUCCESS);
    }
    let limits = Assessor::new(&settings.thresholds).limits(Path::new(&past.path));
    let thresholds = [
        ('W', limits.warning.extents),
        ('C', limits.critical.extents),
    ];
    let width = output::width().map_or(WIDTH, usize::from);
    let span = (question.since, now);
    output::print(&render(&past, span, &thresholds, width))?;
    Ok(SUCCESS)
}

/// An existing path is made absolute; any other is matched by its end.
fn name(image: &Path) -> anyhow::Result<String> {
    let path = match std::path::absolute(image) {
        Ok(path) if std::fs::symlink_metadata(&path).is_ok() => path,
        _ => image.to_owned(),
    };
    Ok(crate::model::path::shown(&path))
}

fn render(
    past: &HistoryResponse,
    span: (UnixTime, UnixTime),
    thresholds: &[(char, ExtentCount)],
    width: usize,
) -> String {
    let vm = past.vm.as_ref();
    let vm = vm.map(|name| format!(" (VM {name})")).unwrap_or_default();
    let mut text = format!("{}{vm}\n", past.path);
    let (Some(first), Some(last)) = (past.readings.first(), past.readings.last()) else {
        text.push_str("It was not counted in this time; --since reaches further back.\n");
        return text;
    };
    // Writing to a String cannot fail, here and below.
    let [then, now] = [first, last].map(|it| {
        format!(
            "{} extents {} ago",
            it.extents,
            Roughly(span.1.since(it.at))
        )
    });
    let _ = writeln!(text, "{then}; {now}\n");
    let points = past.readings.iter();
    let points: Vec<_> = points.map(|it| (it.at, it.peak.max(it.extents))).collect();
    let marks: Vec<_> = past.runs.iter().map(|run| run.at).collect();
    // The time before the first count would be empty.
    let chart = Chart {
        points: &points,
        span: (first.at.max(span.0), span.1),
        thresholds,
        marks: &marks,
    };
    text.push_str(&chart.render(width));
    for (letter, count) in thresholds {
        let what = if *letter == 'C' {
            "critical"
        } else {
            "warning"
        };
        let _ = write!(text, "  {letter} {what} {count}");
    }
    let marked = if marks.is_empty() {
        ""
    } else {
        "  ▲ defragmented"
    };
    text + marked + "\n" + &events(past)
}

fn events(past: &HistoryResponse) -> String {
    let runs = past.runs.iter().map(|run| {
        let took = Roughly(Duration::from_secs_f64(run.seconds.clamp(0.0, 1e9)));
        let (engine, outcome, from, to) = (&run.engine, &run.outcome, run.from, run.to);
        let gap = if run.reason.is_empty() { "" } else { ": " };
        let reason = &run.reason;
        let stalls = run.stalls.map(|it| format!(" ({it})"));
        let stalls = stalls.unwrap_or_default();
        let what = format!(
            "{engine} {outcome} from {from} to {to} extents in {took}{stalls}{gap}{reason}"
        );
        (run.at, what)
    });
    let changes = past.severities.iter().map(|change| {
        let (to, from, extents) = (&change.to, &change.from, change.extents);
        let what = format!(
            "{to} (was {from}) with {extents} extents; {}",
            change.reason
        );
        (change.at, what)
    });
    let mut events: Vec<(UnixTime, String)> = runs.chain(changes).collect();
    events.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let lines = events.iter();
    let lines = lines.map(|(at, what)| format!("{}  {what}\n", rfc3339_seconds(*at)));
    let gap = (!events.is_empty()).then(|| "\n".to_owned());
    gap.into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{PastSeverity, Reading};
    use crate::model::Stalls;
    use crate::serve::history::Run;

    #[test]
    fn the_past_of_an_image() {
        let reading = |at, extents| Reading {
            at: UnixTime(at),
            extents: ExtentCount(extents),
            peak: ExtentCount(extents),
        };
        let past = HistoryResponse {
            path: "/srv/db.img".to_owned(),
            readings: vec![reading(100, 5), reading(3700, 900), reading(7200, 7)],
            runs: vec![Run {
                at: UnixTime(7000),
                seconds: 61.0,
                engine: "xfs_fsr".to_owned(),
                from: ExtentCount(900),
                to: ExtentCount(7),
                outcome: "improved".to_owned(),
                reason: String::new(),
                stalls: Some(Stalls {
                    calls: 1500,
                    longest: Duration::from_micros(12_300),
                    total: Duration::from_millis(4500),
                }),
            }],
            severities: vec![PastSeverity {
                image: 0,
                at: UnixTime(3700),
                from: "ok".to_owned(),
                to: "warning".to_owned(),
                extents: ExtentCount(900),
                reason: "it has 900 extents".to_owned(),
            }],
            ..HistoryResponse::default()
        };
        let text = render(
            &past,
            (UnixTime(0), UnixTime(7200)),
            &[('W', ExtentCount(800))],
            60,
        );
        for part in [
            "/srv/db.img\n5 extents 1 h 58 min ago; 7 extents 0 s ago\n",
            "  W warning 800  ▲ defragmented\n",
            "1970-01-01T01:56:40Z  xfs_fsr improved from 900 to 7 extents in 1 min (1,500 calls, \
             longest stall 12.3 ms, 4.5 s in all)\n\
             1970-01-01T01:01:40Z  warning (was ok) with 900 extents; it has 900 extents\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn nothing_in_this_time() {
        let past = HistoryResponse {
            path: "/srv/db.img".to_owned(),
            ..HistoryResponse::default()
        };
        let text = render(&past, (UnixTime(0), UnixTime(10)), &[], 80);
        assert!(text.contains("--since reaches further back"));
    }
}
