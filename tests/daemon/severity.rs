//! Severities that change: the log, the metrics, the hook.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::thread;
use std::time::Duration;

use crate::support::guest::{self, Aligned, BLOCK};
use crate::support::{self, Bed, MIB};
use crate::watch::{OFTEN, WHEN_ASKED, Watch, until};

/// Has the hook add what it is told to a file, its JSON last in the line.
fn hook(out: &std::path::Path) -> String {
    let script = format!(
        "{{ echo $FRAGWATCH_EVENT $FRAGWATCH_IMAGE $FRAGWATCH_SEVERITY_BEFORE $FRAGWATCH_SEVERITY \
         $FRAGWATCH_EXTENTS: $FRAGWATCH_REASON; cat; echo; }} >>{}",
        out.display()
    );
    format!("hook = [\"/bin/sh\", \"-c\", {script:?}]\n")
}

#[test]
fn a_change_is_one_line_one_metric_and_one_run() {
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    guest::alternate_blocks(&image, 100);
    let watch = Watch::start(&[bed.path()], WHEN_ASKED);
    let out = watch.etc.join("told");
    let thresholds = format!(
        "[thresholds]\n{}warning = {{ extents = 1_000 }}\n\
         [[thresholds.override]]\nimages = [\"*.raw\"]\nwarning = {{ extents = 50 }}\n",
        hook(&out)
    );
    watch
        .etc
        .configure(&[bed.path()], &format!("{WHEN_ASKED}{thresholds}"));
    let now = watch.sweep();
    assert_eq!(now.of_image("fragwatch_image_severity", &image), Some(1.0));
    let told = || fs::read_to_string(&out).unwrap_or_default();
    let lines = || told().lines().count();
    until("the hook", || (lines() >= 2).then_some(()));
    // The same again, and nearly the same: nothing more.
    watch.sweep();
    for block in 0..54 {
        guest::discard_block(&image, 2 * block);
    }
    assert_eq!(watch.sweep().extents(&image), Some(46.0));
    // Well below.
    guest::discard_block(&image, 2 * 98);
    guest::discard_block(&image, 2 * 97);
    let now = watch.sweep();
    assert_eq!(now.of_image("fragwatch_image_severity", &image), Some(0.0));
    until("the hook again", || (lines() >= 4).then_some(()));

    let path = image.display();
    let text = told();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        [lines[0], lines[2]],
        [
            format!("severity {path} ok warning 100: the threshold is 50 extents"),
            format!("severity {path} warning ok 44: below all thresholds"),
        ]
    );
    let json: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    assert_eq!(json["image"], path.to_string());
    assert_eq!(
        (&json["severity"], &json["extents"]),
        (&"warning".into(), &100.into())
    );
    assert_eq!(json["growth_per_day"], serde_json::Value::Null);
    assert_eq!(json["forecast"], "unknown: too few samples");
    let said = watch.log(&format!("image {path}: "));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].contains("warning with 100 extents; the threshold is 50 extents"),
        "{said:?}"
    );
    assert!(said[1].contains("ok again with 44 extents"), "{said:?}");
    until("how the hook ended", || {
        (watch.log("thresholds.hook (").len() == 2).then_some(())
    });
    let ended = watch.log("thresholds.hook (");
    assert!(
        ended.iter().all(|line| line.contains("succeeded")),
        "{ended:?}"
    );
}

/// A writer that never comes to the threshold of extents: the forecast alone tells.
#[test]
fn an_image_that_grows_is_told_before_it_is_critical() {
    const CRITICAL: u64 = 3_000;
    let bed = support::require!(Bed::xfs());
    let image = bed.path().join("a.raw");
    File::create_new(&image).unwrap().set_len(64 * MIB).unwrap();
    let thresholds = format!(
        "[thresholds]\ngrowth_window = '60s'\n\
         warning = {{ extents = 2_999, growth_per_day = 'never', time_to_critical = '1h' }}\n\
         critical = {{ extents = {CRITICAL} }}\n"
    );
    let (growth, left, severity) = (
        "fragwatch_image_extents_growth_per_second",
        "fragwatch_image_seconds_to_critical",
        "fragwatch_image_severity",
    );
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let file = guest::open_direct(&image).unwrap();
            let block = Aligned::block();
            // At every second block, so that each is an extent.
            for number in 0..CRITICAL - 100 {
                file.write_all_at(&block, 2 * number * BLOCK).unwrap();
                thread::sleep(Duration::from_millis(8));
            }
        });
        let watch = Watch::start(&[bed.path()], &format!("{OFTEN}{thresholds}"));
        let first = watch.scrape();
        assert_eq!(first.of_image(growth, &image), None);
        assert_eq!(first.of_image(left, &image), None);
        assert_eq!(first.value("fragwatch_host_severity", &[]), Some(0.0));
        let known = watch.until("growth", |now| now.of_image(growth, &image).is_some());
        let rate = known.of_image(growth, &image).unwrap();
        // Each write waits for 8 ms at least.
        assert!(rate > 0.0 && rate <= 125.0 * 1.1, "{rate}");
        let warned = watch.until("the warning", |now| {
            now.of_image(severity, &image) == Some(1.0)
        });
        assert!(warned.of_image(left, &image).is_some_and(|left| left > 0.0));
        // The writer rests, and the warning stays: nobody knows whether it goes on.
        writer.join().unwrap();
        let later = watch.sweeps(2);
        assert_eq!(later.of_image(severity, &image), Some(1.0));
        let said = watch.log(&format!("image {}: ", image.display()));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("; critical in "), "{said:?}");
    });
}
