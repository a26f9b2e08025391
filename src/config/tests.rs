//! The room as a whole: from texts and files to settings, or to what an operator reads.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use jiff::civil::{Weekday, date, time};
use proptest::prelude::*;
use tempfile::TempDir;

use super::examples::DELIVERED;
use super::settings::{
    Blackout, BlockCopy, Control, Defrag, FleetLock, History, Hold, HostLimits, Images, Klog,
    LimitChanges, Limits, MAX_ACTIONS_PER_HOUR, Maintenance, Metrics, Override, Rescue, Sampling,
    Thresholds, Window,
};
use super::*;
use crate::model::{
    Bytes, BytesPerSecond, Engine, ExtentCount, ExtentsPerDay, RescueStep, RuleAction,
    RuleDefinition, Severity, Share,
};
use crate::rescue::{Ladder, LadderSettings, ladder};
use crate::sys::zone::Zone;

/// The settings that texts make together, or what is printed.
fn settings(texts: &[&str]) -> Result<Settings, String> {
    let names = ["f.toml", "conf.d/10.toml", "conf.d/20.toml"];
    let sources: Vec<Source> = std::iter::zip(names, texts)
        .map(|(name, text)| Source {
            path: PathBuf::from(name),
            text: (*text).to_owned(),
        })
        .collect();
    match assemble(&sources, &[]) {
        (settings, findings) if findings.is_empty() => Ok(settings),
        (_, findings) => Err(ConfigError::new(Vec::new(), findings, &sources).to_string()),
    }
}

/// The settings that a text makes, which is right.
#[track_caller]
fn accepted(text: &str) -> Settings {
    settings(&[text]).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

/// The lines of `expected` without their indentation up to the bar.
#[track_caller]
fn refused(texts: &[&str], expected: &str) {
    let expected: Vec<&str> = expected
        .lines()
        .filter_map(|line| line.split_once('|').map(|(_, line)| line))
        .collect();
    assert_eq!(settings(texts).unwrap_err(), expected.join("\n"));
}

#[test]
fn nothing_set_is_the_defaults() {
    assert_eq!(settings(&[]), Ok(Settings::default()));
    assert_eq!(
        settings(&["", "# nothing\n", "[sampling]"]),
        Ok(Settings::default())
    );
}

#[test]
fn the_delivered_file_sets_every_key_to_its_default() {
    assert_eq!(settings(&[DELIVERED]), Ok(Settings::default()));
    // Keys and values are the same as those that are printed, and so are their units.
    let table = |text: &str| text.parse::<toml::Table>().unwrap();
    assert_eq!(table(DELIVERED), table(&Settings::default().to_toml()));
}

/// The paths of all keys of a text.
fn keys(text: &str) -> Vec<String> {
    fn add(keys: &mut Vec<String>, path: &str, value: &toml::Value) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    add(keys, &text::join(path, key), value);
                }
            }
            toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
                items.iter().for_each(|item| add(keys, path, item));
            }
            _ => keys.push(path.to_owned()),
        }
    }
    let mut keys = Vec::new();
    add(&mut keys, "", &toml::Value::Table(text.parse().unwrap()));
    keys.sort();
    keys
}

#[test]
fn every_key_stands_in_the_delivered_file() {
    let examples = examples::sections();
    let text = format!("{DELIVERED}\n{examples}");
    let loaded = settings(&[&text]).unwrap();
    assert_eq!(loaded.klog.rules.len(), 1);
    assert_eq!(loaded.thresholds.overrides.len(), 1);
    assert_eq!(loaded.maintenance.windows.len(), 1);
    assert_eq!(loaded.maintenance.blackouts.len(), 1);
    assert_eq!(keys(&text), keys(&loaded.to_toml()));
    assert_eq!(settings(&[DELIVERED, &examples]), Ok(loaded));
}

#[test]
fn rules_of_all_files_are_added_up() {
    let rule = |name: &str, pattern: &str, action| RuleDefinition {
        name: name.to_owned(),
        pattern: pattern.to_owned(),
        action,
    };
    let settings = settings(&[
        "[[klog.rule]]\nname = 'a'\npattern = 'x'\n\
         [[klog.rule]]\nname = 'b'\npattern = '\\d\"'\naction = 'rescue'\n[klog]\nfiles = ['/a']",
        "klog.rule = [{ name = 'c', pattern = \"\\\\w\" }]",
        "[klog]\nrule = []\nfiles = ['/b', '/c']",
    ])
    .unwrap();
    let expected = [
        rule("a", "x", RuleAction::Observe),
        rule("b", "\\d\"", RuleAction::Rescue),
        rule("c", "\\w", RuleAction::Observe),
    ];
    assert_eq!(settings.klog.rules, expected);
    assert_eq!(settings.klog.files, [Path::new("/b"), Path::new("/c")]);

    let text = settings.to_toml();
    let (_, rules) = text.split_once("files_may_rescue = false\n").unwrap();
    let (rules, _) = rules.split_once("\n[rescue]").unwrap();
    assert_eq!(
        rules,
        r#"
[[klog.rule]]
name = "a"
pattern = "x"
action = "observe"

[[klog.rule]]
name = "b"
pattern = '\d"'
action = "rescue"

[[klog.rule]]
name = "c"
pattern = '\w'
action = "observe"
"#
    );
}

#[test]
fn rules_that_are_none() {
    refused(
        &[
            "[klog]\nrule = 'x'",
            "[klog.rule]\nname = 'a'\nfoo = 1\n[[klog.rules]]\n[[rescue]]\n[[klog.file]]",
            "[[klog.rule]]\nname = 5\n[[klog.rule]]\npatern = 'x'\nenabled = true\naction = 'resque'\n\
             [sampling]\npattern = 'x'",
        ],
        r#"
        |f.toml:2:8: klog.rule: 'x' is not a list
        |    rule = 'x'
        |           ^^^
        |    write: [[klog.rule]]
        |
        |conf.d/10.toml:1:1: klog.rule: is not a list
        |    [klog.rule]
        |    ^^^^^^^^^^^
        |    write: [[klog.rule]]
        |
        |conf.d/10.toml:4:8: unknown section [klog.rules]
        |    [[klog.rules]]
        |           ^^^^^
        |    write: [[klog.rule]]
        |
        |conf.d/10.toml:5:1: rescue: is a section, not a list
        |    [[rescue]]
        |    ^^^^^^^^^^
        |    write: [rescue]
        |
        |conf.d/10.toml:6:8: unknown section [klog.file]
        |    [[klog.file]]
        |           ^^^^
        |    write: files = []
        |
        |conf.d/20.toml:2:8: klog.rule.name: 5 is not text in quotes
        |    name = 5
        |           ^
        |    write: name = "disk_failed"
        |
        |conf.d/20.toml:4:1: unknown key klog.rule.patern
        |    patern = 'x'
        |    ^^^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |conf.d/20.toml:8:1: unknown key sampling.pattern
        |    pattern = 'x'
        |    ^^^^^^^
        |    help: valid here are interval, map_interval, map_max_extents, probe_timeout
        "#,
    );
}

#[test]
fn a_misspelled_key_is_the_only_mistake_of_its_rule() {
    let rule = "[[klog.rule]]\nnam = 'a'\npattern = 'x'\n";
    let error = settings(&[&rule.repeat(2)]).unwrap_err();
    assert_eq!(error.matches("unknown key klog.rule.nam").count(), 2);
    assert_eq!(error.matches("klog.rule").count(), 2, "{error}");
}

#[test]
fn a_pattern_is_wrong_at_its_place() {
    refused(
        &[
            "[[klog.rule]]\nname = 'a'\npattern = 'md\\d+: (fail'\n\
             [[klog.rule]]\nname = 'b'\npattern = \"磁 \\\\d [z-a]\"\n\
             [[klog.rule]]\nname = 'c'\npattern = '''\nx\n  *?*+{'''\n",
            "[[klog.rule]]\nname = 'd'\npattern = 'x*'\n\
             [[klog.rule]]\nname = 'e'\npattern = '[a-z]{1,1000}x{1000}'\n\
             [[klog.rule]]\nname = 'f'\npattern = \"\\bsda\\\\d\"\n\
             [[klog.rule]]\nname = 'good'\npattern = 'x'",
            "[[klog.rule]]\nname = 'good'\npattern = 'x'\n\
             [[klog.rule]]\nname = 'xfs_deadlock'\npattern = 'x'\n\
             [[klog.rule]]\nname = 'MD fail'\npattern = 'x'\n",
        ],
        r#"
        |f.toml:3:11: klog.rule.pattern: unclosed group (byte 7 of the pattern)
        |    pattern = 'md\d+: (fail'
        |              ^^^^^^^^^^^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |f.toml:6:11: klog.rule.pattern: invalid character class range, the start must be <= the end (byte 8 of the pattern)
        |    pattern = "磁 \\d [z-a]"
        |              ^^^^^^^^^^^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |f.toml:9:11: klog.rule.pattern: unclosed counted repetition (byte 8 of the pattern)
        |    pattern = '''
        |              ^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |conf.d/10.toml:3:11: klog.rule.pattern: the pattern matches the empty text, and so every record
        |    pattern = 'x*'
        |              ^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |conf.d/10.toml:6:11: klog.rule.pattern: the pattern takes too much memory; counted repetitions are the usual reason, `.*` takes less than `.{1,30}`
        |    pattern = '[a-z]{1,1000}x{1000}'
        |              ^^^^^^^^^^^^^^^^^^^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |conf.d/10.toml:9:11: klog.rule.pattern: \b in double quotes is a backspace; in single quotes, the end of a word
        |    pattern = "\bsda\\d"
        |              ^^^^^^^^^^
        |    write: pattern = 'md/raid\d*:\w+: Disk failure on'
        |
        |conf.d/20.toml:2:8: klog.rule.name: "good": there is a rule of that name already
        |    name = 'good'
        |           ^^^^^^
        |    write: name = "disk_failed"
        |
        |conf.d/20.toml:5:8: klog.rule.name: "xfs_deadlock": there is a rule of that name already
        |    name = 'xfs_deadlock'
        |           ^^^^^^^^^^^^^^
        |    write: name = "disk_failed"
        |
        |conf.d/20.toml:8:8: klog.rule.name: "MD fail": a name has up to 64 lower-case letters, digits and _, a letter first
        |    name = 'MD fail'
        |           ^^^^^^^^^
        |    write: name = "disk_failed"
        "#,
    );
}

#[test]
fn too_many_rules_are_said_once() {
    let rules = |from: usize, to: usize| -> String {
        let rule = |n| format!("[[klog.rule]]\nname = 'r{n}'\npattern = 'x'\n");
        (from..to).map(rule).collect()
    };
    assert!(settings(&[&rules(0, 64)]).is_ok());
    refused(
        &[&rules(0, 60), &rules(60, 70)],
        r#"
        |conf.d/10.toml:14:8: klog.rule.name: "r64": there are more than 64 rules
        |    name = 'r64'
        |           ^^^^^
        |    write: one pattern for several messages: 'this|that'
        "#,
    );
    // Nor is time spent on rules whose mistakes nobody would be shown.
    let wrong: String = (0..20_000)
        .map(|n| format!("[[klog.rule]]\nname = 'r{n}'\npattern = '('\n"))
        .collect();
    assert!(settings(&[&wrong]).is_err());
}

#[test]
fn a_backslash_in_double_quotes() {
    refused(
        &[
            "[[klog.rule]]\nname = 'a'\npattern = \"^md\\d+: \\\"x\\\" \\w\"\n[images]\nexclude = [\"it's \\*\"]",
        ],
        r#"
        |f.toml:3:16: not TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\`, `"`, `x`, `u`, `U`
        |    pattern = "^md\d+: \"x\" \w"
        |                   ^
        |    help: a line is [section] or key = value; text is in quotes: 'text'
        "#,
    );
}

#[test]
fn switches() {
    refused(
        &[
            "[klog]\nfiles_may_rescue = 'true'\n[rescue]\nenabled = 1\n",
            "[klog]\nkmsg = on\nfiles_may_rescue =\n",
            "[rescue]\nenabled = 'maybe'\ndry_run = []",
        ],
        r#"
        |f.toml:2:20: klog.files_may_rescue: 'true' is neither true nor false
        |    files_may_rescue = 'true'
        |                       ^^^^^^
        |    write: files_may_rescue = false
        |
        |f.toml:4:11: rescue.enabled: 1 is neither true nor false
        |    enabled = 1
        |              ^
        |    write: enabled = true
        |
        |conf.d/10.toml:2:8: not TOML: string values must be quoted, expected literal string
        |    kmsg = on
        |           ^^
        |    help: a line is [section] or key = value; text is in quotes: 'text'
        |
        |conf.d/20.toml:2:11: rescue.enabled: 'maybe' is neither true nor false
        |    enabled = 'maybe'
        |              ^^^^^^^
        |    write: enabled = true
        |
        |conf.d/20.toml:3:11: rescue.dry_run: is neither true nor false
        |    dry_run = []
        |              ^^
        |    write: dry_run = false
        "#,
    );
}

#[test]
fn a_rescue_that_cannot_be() {
    refused(
        &[
            "[rescue]\nsteps = ['drop_slab', 'drop_caches', 5]\nquiet_after = '0s'\n\
           max_actions_per_hour = 0\nstall_after = '0s'\nhook = ['notify', \"a\\u0000\"]\n\
           [klog]\nfiles = ['kern.log', '/var/log/*.log', '/ok[1]', \"/a\\u0000\"]",
        ],
        r#"
        |f.toml:2:23: rescue.steps: 'drop_caches' is none of drop_slab, drop_all, compact_memory
        |    steps = ['drop_slab', 'drop_caches', 5]
        |                          ^^^^^^^^^^^^^
        |    write: steps = ["drop_slab", "drop_slab", "compact_memory", "drop_all"]
        |
        |f.toml:3:15: rescue.quiet_after: "0s" is below "1s"
        |    quiet_after = '0s'
        |                  ^^^^
        |    write: quiet_after = "1m"
        |
        |f.toml:4:24: rescue.max_actions_per_hour: 0 is below 1
        |    max_actions_per_hour = 0
        |                           ^
        |    write: max_actions_per_hour = 120
        |
        |f.toml:5:15: rescue.stall_after: "0s" is below "1s"
        |    stall_after = '0s'
        |                  ^^^^
        |    write: stall_after = "10s"
        |
        |f.toml:6:9: rescue.hook: "notify" is not an absolute path
        |    hook = ['notify', "a\u0000"]
        |            ^^^^^^^^
        |    write: hook = []
        |
        |f.toml:6:19: rescue.hook: "a\U00000000" is not text without NUL
        |    hook = ['notify', "a\u0000"]
        |                      ^^^^^^^^^
        |    write: hook = []
        |
        |f.toml:8:10: klog.files: "kern.log" is not the absolute path of one file
        |    files = ['kern.log', '/var/log/*.log', '/ok[1]', "/a\u0000"…
        |             ^^^^^^^^^^
        |    write: files = []
        |
        |f.toml:8:22: klog.files: "/var/log/*.log" is not the absolute path of one file
        |    files = ['kern.log', '/var/log/*.log', '/ok[1]', "/a\u0000"]
        |                         ^^^^^^^^^^^^^^^^
        |    write: files = []
        |
        |f.toml:8:50: klog.files: "/a\U00000000" is not the absolute path of one file
        |    files = ['kern.log', '/var/log/*.log', '/ok[1]', "/a\u0000"]
        |                                                     ^^^^^^^^^^
        |    write: files = []
        "#,
    );
    refused(
        &[
            "[rescue]\nmax_actions_per_hour = 3_601",
            "[rescue]\nmax_actions_per_hour = 99_999_999_999\nmin_interval = 'never'",
        ],
        r#"
        |f.toml:2:24: rescue.max_actions_per_hour: 3601 is above 3600
        |    max_actions_per_hour = 3_601
        |                           ^^^^^
        |    write: max_actions_per_hour = 120
        |
        |conf.d/10.toml:2:24: rescue.max_actions_per_hour: 99_999_999_999 is not a whole number in range
        |    max_actions_per_hour = 99_999_999_999
        |                           ^^^^^^^^^^^^^^
        |    write: max_actions_per_hour = 120
        |
        |conf.d/10.toml:3:16: rescue.min_interval: 'never' is not a duration such as 90s or 1h30m, at most 36500d
        |    min_interval = 'never'
        |                   ^^^^^^^
        |    write: min_interval = "2s"
        "#,
    );
}

#[test]
fn a_rescue_that_contradicts_itself() {
    refused(
        &[
            "[rescue]\nsteps = []\nmin_interval = '61s'\nquiet_after = '1m'",
            "[klog]\nkmsg = false\nfiles = ['/var/log/kern.log']",
            "[rescue]\nstall_after = 'never'",
        ],
        r#"
        |f.toml:2:9: rescue.steps: there is no step
        |    steps = []
        |            ^^
        |    write: steps = ["drop_slab", "drop_slab", "compact_memory", "drop_all"]
        |
        |f.toml:3:16: rescue.min_interval = "61s" is longer than rescue.quiet_after = "1m"
        |    min_interval = '61s'
        |                   ^^^^^
        |    write: another value, or another rescue.quiet_after
        |
        |conf.d/10.toml:2:8: klog.kmsg = false, and rescue.stall_after = "never", and no log file may rescue: nothing could start the rescue
        |    kmsg = false
        |           ^^^^^
        |    write: kmsg = true
        "#,
    );
    let silent = "[klog]\nkmsg = false\n[rescue]\nstall_after = 'never'\n";
    for able in [
        "[rescue]\nenabled = false",
        "[rescue]\nstall_after = '1s'",
        "[klog]\nkmsg = true",
        "[klog]\nfiles = ['/a']\nfiles_may_rescue = true",
    ] {
        assert!(settings(&[silent, able]).is_ok(), "{able}");
    }
    assert!(settings(&["[klog]\nfiles_may_rescue = true"]).is_ok());
}

#[test]
fn a_defragmentation_that_cannot_be() {
    refused(
        &[
            "[defrag]\nfrom = 'bad'\nengines = ['fsr']\nkeep_free = '95%'\nbandwidth = '200MiB'\n\
           max_io_pressure = 0\nparallel = 65\nhook_before = ['virsh']\n\
           trusted_kernels = ['5.14.0-611.el9.x86_64', '6.1.*', '']",
        ],
        r#"
        |f.toml:2:8: defrag.from: 'bad' is none of ok, warning, critical
        |    from = 'bad'
        |           ^^^^^
        |    write: from = "warning"
        |
        |f.toml:3:12: defrag.engines: 'fsr' is none of xfs_fsr, online, blockcopy
        |    engines = ['fsr']
        |               ^^^^^
        |    write: engines = ["xfs_fsr", "online"]
        |
        |f.toml:4:13: defrag.keep_free: "95%" is above "90%"
        |    keep_free = '95%'
        |                ^^^^^
        |    write: keep_free = "5%"
        |
        |f.toml:5:13: defrag.bandwidth: '200MiB' is not a rate such as 200MiB/s
        |    bandwidth = '200MiB'
        |                ^^^^^^^^
        |    write: bandwidth = "200MiB/s"
        |
        |f.toml:6:19: defrag.max_io_pressure: 0 is below 1
        |    max_io_pressure = 0
        |                      ^
        |    write: max_io_pressure = 40
        |
        |f.toml:7:12: defrag.parallel: 65 is above 64
        |    parallel = 65
        |               ^^
        |    write: parallel = 2
        |
        |f.toml:8:16: defrag.hook_before: "virsh" is not an absolute path
        |    hook_before = ['virsh']
        |                   ^^^^^^^
        |    write: hook_before = []
        |
        |f.toml:9:45: defrag.trusted_kernels: "6.1.*" is not the output of `uname -r`
        |    trusted_kernels = ['5.14.0-611.el9.x86_64', '6.1.*', '']
        |                                                ^^^^^^^
        |    write: trusted_kernels = []
        |
        |f.toml:9:54: defrag.trusted_kernels: "" is not the output of `uname -r`
        |    …sted_kernels = ['5.14.0-611.el9.x86_64', '6.1.*', '']
        |                                                       ^^
        |    write: trusted_kernels = []
        "#,
    );
    refused(
        &["[defrag]\nengines = []"],
        r#"
        |f.toml:2:11: defrag.engines: there is no engine
        |    engines = []
        |              ^^
        |    write: engines = ["xfs_fsr", "online"]
        "#,
    );
}

#[test]
fn blockcopy_is_an_engine_if_it_is_enabled_or_named() {
    use Engine::{BlockCopy as Copy, Online, XfsFsr};
    let defrag = |text: &str| settings(&[text]).unwrap().defrag;
    let engines = |text: &str| {
        let defrag = defrag(text);
        assert_eq!(
            defrag.blockcopy.enabled,
            defrag.engines.contains(&Copy),
            "{text}"
        );
        defrag.engines
    };
    let enabled = "[defrag.blockcopy]\nenabled = true";
    assert_eq!(engines(""), [XfsFsr, Online]);
    assert_eq!(engines(enabled), [XfsFsr, Online, Copy]);
    assert_eq!(
        engines(&format!("[defrag]\nengines = ['online']\n{enabled}")),
        [Online, Copy]
    );
    let first = "[defrag]\nengines = ['blockcopy', 'online']";
    assert_eq!(engines(&format!("{first}\n{enabled}")), [Copy, Online]);
    assert_eq!(engines(first), [Copy, Online]);
    let of = |text: &str| {
        defrag(&format!("{enabled}\ndirectory = '{text}'"))
            .blockcopy
            .directory
    };
    assert_eq!(of("/srv/copies"), Path::new("/srv/copies"));
    assert_eq!(of(""), Path::new(""));
    refused(
        &["[defrag]\nengines = ['blockcopy']\n[defrag.blockcopy]\nenabled = false"],
        r#"
        |f.toml:2:11: defrag.engines = [… "blockcopy"] contradicts defrag.blockcopy.enabled = false
        |    engines = ['blockcopy']
        |              ^^^^^^^^^^^^^
        |    write: another value, or another defrag.blockcopy.enabled
        "#,
    );
    refused(
        &["[defrag.blockcopy]\nenabled = 1\ndirectory = 'copies'"],
        r#"
        |f.toml:2:11: defrag.blockcopy.enabled: 1 is neither true nor false
        |    enabled = 1
        |              ^
        |    write: enabled = false
        |
        |f.toml:3:13: defrag.blockcopy.directory: "copies" is not "" or an absolute path
        |    directory = 'copies'
        |                ^^^^^^^^
        |    write: directory = ""
        "#,
    );
}

#[test]
fn the_limit_of_the_ladder_is_the_limit_here() {
    assert_eq!(MAX_ACTIONS_PER_HOUR, ladder::MAX_ACTIONS_PER_HOUR);
}

#[test]
fn a_later_file_wins_key_by_key() {
    let settings = settings(&[
        "[sampling]\ninterval = '2m'\nmap_interval = 'never'\n[images]\npaths = ['/a', '/b']",
        "[sampling]\ninterval = '3m'\n[images]\npaths = ['/c']",
        "[thresholds.warning]\nextents = 7",
    ])
    .unwrap();
    assert_eq!(settings.sampling.interval, Duration::from_secs(180));
    assert_eq!(settings.sampling.map_interval, None);
    assert_eq!(settings.images.paths, ["/c"]);
    assert_eq!(settings.thresholds.warning.extents, ExtentCount(7));
    assert_eq!(settings.thresholds.critical.extents, ExtentCount(5_000_000));
}

#[test]
fn a_unit_that_is_none() {
    refused(
        &["[sampling]\r\n\tinterval = \"1 minute\"\r\n[images]\r\nmin_size = '1 giga'"],
        r#"
        |f.toml:2:13: sampling.interval: "1 minute" is not a duration such as 90s or 1h30m, at most 36500d
        |     interval = "1 minute"
        |                ^^^^^^^^^^
        |    write: interval = "1m"
        |
        |f.toml:4:12: images.min_size: '1 giga' is not a size such as 64KiB or 500MB, below 16EiB
        |    min_size = '1 giga'
        |               ^^^^^^^^
        |    write: min_size = "256MiB"
        "#,
    );
}

#[test]
fn servers_that_cannot_be() {
    for url in [
        "https://h/",
        "h:80",
        "http://",
        "http://h?x",
        "http://u@h",
        "/a",
    ] {
        let text = format!("[maintenance]\nlock = {{ url = {url:?} }}");
        let refused = settings(&[&text]).unwrap_err();
        assert!(refused.contains("maintenance.lock.url"), "{url}: {refused}");
        assert!(
            refused.contains("is not http://HOST[:PORT][/PATH]"),
            "{url}: {refused}"
        );
    }
    let refused = |text: &str| settings(&[text]).unwrap_err();
    let group = refused("[maintenance.lock]\ngroup = 'a b'");
    assert!(group.contains("is not letters, digits, . and -"), "{group}");
    let query = refused("[maintenance.hold]\nurl = 'http://h'");
    assert!(
        query.contains("there is no maintenance.hold.query"),
        "{query}"
    );
}

#[test]
fn places_of_files_that_cannot_be() {
    let long = format!("[control]\nsocket = '/{}'", "s".repeat(107));
    refused(
        &["[metrics]\ntextfile = '/srv/fragwatch.txt'\n[control]\nsocket = 'here'\ngroup = ''"],
        r#"
        |f.toml:2:12: metrics.textfile: "/srv/fragwatch.txt" is not an absolute path that ends in .prom
        |    textfile = '/srv/fragwatch.txt'
        |               ^^^^^^^^^^^^^^^^^^^^
        |    write: textfile = ""
        |
        |f.toml:4:10: control.socket: "here" is not an absolute path of at most 107 bytes
        |    socket = 'here'
        |             ^^^^^^
        |    write: socket = "/run/fragwatch/control.sock"
        |
        |f.toml:5:9: control.group: "" is not the name of a group
        |    group = ''
        |            ^^
        |    write: group = "root"
        "#,
    );
    let refusal = settings(&[&long]).unwrap_err();
    assert!(
        refusal.contains("is not an absolute path of at most 107 bytes"),
        "{refusal}"
    );
}

#[test]
fn values_of_the_wrong_type() {
    refused(
        &["[sampling]\ninterval = ['1m']\nmap_interval = true\n\
           [thresholds]\nwarning = 5\ncritical.extents = '500k'\n\
           [images]\npaths = '/srv'\n[metrics]\nlisten = 9843"],
        r#"
        |f.toml:2:12: sampling.interval: is not text in quotes
        |    interval = ['1m']
        |               ^^^^^^
        |    write: interval = "1m"
        |
        |f.toml:3:16: sampling.map_interval: true is not text in quotes
        |    map_interval = true
        |                   ^^^^
        |    write: map_interval = "12h"
        |
        |f.toml:5:11: thresholds.warning: is a section, not a value
        |    warning = 5
        |              ^
        |    write: [thresholds.warning]
        |
        |f.toml:6:20: thresholds.critical.extents: '500k' is not a whole number in range
        |    critical.extents = '500k'
        |                       ^^^^^^
        |    write: extents = 5000000
        |
        |f.toml:8:9: images.paths: '/srv' is not a list
        |    paths = '/srv'
        |            ^^^^^^
        |    write: paths = ["/var/lib/libvirt/images"]
        |
        |f.toml:10:10: metrics.listen: 9843 is not text in quotes
        |    listen = 9843
        |             ^^^^
        |    write: listen = "127.0.0.1:9843"
        "#,
    );
}

#[test]
fn unknown_keys_and_sections() {
    refused(
        &[
            "interval = '1m'\n[sampling]\nintervall = '1m'\nspeed = 1\nlisten = 'x'\n[image]\n[klogg]\n[storage]",
        ],
        r#"
        |f.toml:1:1: unknown key interval
        |    interval = '1m'
        |    ^^^^^^^^
        |    help: valid here are images, sampling, history, thresholds, klog, rescue, maintenance, defrag, doctor, metrics, control
        |
        |f.toml:3:1: unknown key sampling.intervall
        |    intervall = '1m'
        |    ^^^^^^^^^
        |    write: interval = "1m"
        |
        |f.toml:4:1: unknown key sampling.speed
        |    speed = 1
        |    ^^^^^
        |    help: valid here are interval, map_interval, map_max_extents, probe_timeout
        |
        |f.toml:5:1: unknown key sampling.listen
        |    listen = 'x'
        |    ^^^^^^
        |    help: valid here are interval, map_interval, map_max_extents, probe_timeout
        |
        |f.toml:6:2: unknown section [image]
        |    [image]
        |     ^^^^^
        |    write: [images]
        |
        |f.toml:7:2: unknown section [klogg]
        |    [klogg]
        |     ^^^^^
        |    write: [klog]
        |
        |f.toml:8:2: unknown section [storage]
        |    [storage]
        |     ^^^^^^^
        |    help: valid here are images, sampling, history, thresholds, klog, rescue, maintenance, defrag, doctor, metrics, control
        "#,
    );
}

#[test]
fn values_out_of_range() {
    refused(
        &[
            "[sampling]\ninterval = '1ms'\nprobe_timeout = '0s'\nmap_max_extents = 0\n\
           [thresholds]\nwarning = { extents = -5 }\ncritical = { extents = 0x1_0000_0000_0000 }",
        ],
        r#"
        |f.toml:2:12: sampling.interval: "1ms" is below "1s"
        |    interval = '1ms'
        |               ^^^^^
        |    write: interval = "1m"
        |
        |f.toml:3:17: sampling.probe_timeout: "0s" is below "100ms"
        |    probe_timeout = '0s'
        |                    ^^^^
        |    write: probe_timeout = "10s"
        |
        |f.toml:4:19: sampling.map_max_extents: 0 is below 1
        |    map_max_extents = 0
        |                      ^
        |    write: map_max_extents = 1000000
        |
        |f.toml:6:23: thresholds.warning.extents: -5 is not a whole number in range
        |    warning = { extents = -5 }
        |                          ^^
        |    write: extents = 500000
        |
        |f.toml:7:24: thresholds.critical.extents: 281474976710656 is above 281474976710655
        |    critical = { extents = 0x1_0000_0000_0000 }
        |                           ^^^^^^^^^^^^^^^^^^
        |    write: extents = 5000000
        "#,
    );
}

#[test]
fn a_history_that_cannot_be() {
    refused(
        &["[history]\npath = 'history.db'\nretention = '23h'"],
        r#"
        |f.toml:2:8: history.path: "history.db" is not the absolute path of a file
        |    path = 'history.db'
        |           ^^^^^^^^^^^^
        |    write: path = "/var/lib/fragwatch/history.db"
        |
        |f.toml:3:13: history.retention: "23h" is below "1d"
        |    retention = '23h'
        |                ^^^^^
        |    write: retention = "90d"
        "#,
    );
    for path in ["/", "/a/", "/a/..", "/a/.", "/a\\u0000b"] {
        let text = format!("[history]\npath = \"{path}\"");
        assert!(settings(&[&text.replace("\\\\", "\\")]).is_err(), "{path}");
    }
    let of = |text: &str| settings(&[text]).unwrap().history;
    let custom = of("[history]\npath = '/srv/h.sqlite'\nretention = '1d'");
    assert_eq!(custom.path, PathBuf::from("/srv/h.sqlite"));
    assert_eq!(custom.retention, Duration::from_secs(86_400));
}

#[test]
fn a_contradiction_names_both_places() {
    refused(
        &[
            "[thresholds]\ncritical = { extents = 600 }",
            "",
            "# Größe\n[thresholds.warning]\nextents = 1_000",
        ],
        r#"
        |f.toml:2:24: thresholds.critical.extents = 600 is not above thresholds.warning.extents = 1000
        |    critical = { extents = 600 }
        |                           ^^^
        |    write: another value, or another thresholds.warning.extents
        "#,
    );
}

#[test]
fn overrides_of_all_files_are_added_up() {
    let one = "[thresholds]\ngrowth_window = '2d'\n[[thresholds.override]]\nimages = ['/srv/db-*']\n\
               warning = { extents = 100_000, growth_per_day = 'never' }";
    let two = "[[thresholds.override]]\nimages = ['*.raw']\n\
               critical = { time_to_critical = '1h', growth_per_day = 300_000 }\n\
               [thresholds]\nhysteresis = 1";
    let settings = settings(&[one, two]).unwrap();
    let over = |image: &str, warning, critical| Override {
        images: vec![image.to_owned()],
        warning,
        critical,
    };
    let warning = LimitChanges {
        extents: Some(ExtentCount(100_000)),
        growth_per_day: Some(None),
        time_to_critical: None,
    };
    let critical = LimitChanges {
        extents: None,
        growth_per_day: Some(Some(ExtentsPerDay(300_000.0))),
        time_to_critical: Some(Some(Duration::from_secs(3600))),
    };
    let expected = Thresholds {
        growth_window: Duration::from_secs(2 * 86_400),
        hysteresis: Share::WHOLE,
        overrides: vec![
            over("/srv/db-*", warning, LimitChanges::default()),
            over("*.raw", LimitChanges::default(), critical),
        ],
        ..Thresholds::default()
    };
    assert_eq!(settings.thresholds, expected);
    let text = settings.to_toml();
    let (_, text) = text.split_once("critical = \"5%\"\n").unwrap();
    let (text, _) = text.split_once("\n[klog]").unwrap();
    assert_eq!(
        text,
        r#"
[[thresholds.override]]
images = ["/srv/db-*"]

[thresholds.override.warning]
extents = 100000
growth_per_day = "never"

[thresholds.override.critical]

[[thresholds.override]]
images = ["*.raw"]

[thresholds.override.warning]

[thresholds.override.critical]
growth_per_day = 300000
time_to_critical = "1h"
"#
    );
}

#[test]
fn thresholds_that_are_none() {
    refused(
        &[
            "[thresholds]\ngrowth_window = '59s'\nhysteresis = '90%'\nhook = ['notify']\n\
             warning = { growth_per_day = 0, time_to_critical = '0s' }\nhost = { warning = 1 }",
            "[thresholds]\nhysteresis = 0.4\n[[thresholds.override]]\n\
             [[thresholds.override]]\nimages = []\nwarning.extents = 0\n\
             [[thresholds.override]]\nimages = ['a']\ncritical = { growth_per_day = '1k' }\n\
             [[thresholds.override]]\nimages = ['srv/a', 'b[']",
        ],
        r#"
        |f.toml:2:17: thresholds.growth_window: "59s" is below "1m"
        |    growth_window = '59s'
        |                    ^^^^^
        |    write: growth_window = "1d"
        |
        |f.toml:3:14: thresholds.hysteresis: '90%' is not a number from 0.5 to 1
        |    hysteresis = '90%'
        |                 ^^^^^
        |    write: hysteresis = 0.9
        |
        |f.toml:4:9: thresholds.hook: "notify" is not an absolute path
        |    hook = ['notify']
        |            ^^^^^^^^
        |    write: hook = []
        |
        |f.toml:5:30: thresholds.warning.growth_per_day: 0 is below 1
        |    warning = { growth_per_day = 0, time_to_critical = '0s' }
        |                                 ^
        |    write: growth_per_day = 250000
        |
        |f.toml:5:52: thresholds.warning.time_to_critical: "0s" is below "1s"
        |    …arning = { growth_per_day = 0, time_to_critical = '0s' }
        |                                                       ^^^^
        |    write: time_to_critical = "14d"
        |
        |f.toml:6:20: thresholds.host.warning: 1 is not text in quotes
        |    host = { warning = 1 }
        |                       ^
        |    write: warning = "1%"
        |
        |conf.d/10.toml:2:14: thresholds.hysteresis: 0.4 is not a number from 0.5 to 1
        |    hysteresis = 0.4
        |                 ^^^
        |    write: hysteresis = 0.9
        |
        |conf.d/10.toml:3:1: thresholds.override: images is missing
        |    [[thresholds.override]]
        |    ^^^^^^^^^^^^^^^^^^^^^^^
        |    write: images = ["/srv/db-*", "scratch.qcow2"]
        |
        |conf.d/10.toml:5:10: thresholds.override.images: there is no glob
        |    images = []
        |             ^^
        |    write: images = ["/srv/db-*", "scratch.qcow2"]
        |
        |conf.d/10.toml:6:19: thresholds.override.warning.extents: 0 is below 1
        |    warning.extents = 0
        |                      ^
        |    write: extents = 100000
        |
        |conf.d/10.toml:9:31: thresholds.override.critical.growth_per_day: '1k' is neither a whole number nor "never"
        |    critical = { growth_per_day = '1k' }
        |                                  ^^^^
        |    write: growth_per_day = 500000
        |
        |conf.d/10.toml:11:11: thresholds.override.images: "srv/a" is not a glob of a file name, or one of a whole path, which begins with / or **
        |    images = ['srv/a', 'b[']
        |              ^^^^^^^
        |    write: images = ["/srv/db-*", "scratch.qcow2"]
        |
        |conf.d/10.toml:11:20: thresholds.override.images: "b[" is not a glob of a file name, or one of a whole path, which begins with / or **
        |    images = ['srv/a', 'b[']
        |                       ^^^^
        |    write: images = ["/srv/db-*", "scratch.qcow2"]
        "#,
    );
}

#[test]
fn overrides_that_contradict() {
    refused(
        &[
            "[thresholds]\ngrowth_window = '1h'\nhost = { warning = '5%', critical = '5%' }\n\
             [thresholds.warning]\ntime_to_critical = '2h'\ngrowth_per_day = 250_000\n\
             [thresholds.critical]\ngrowth_per_day = 200_000\ntime_to_critical = '2h'\n\
             extents = 5_000_000",
            "[[thresholds.override]]\nimages = ['a']\nwarning = { extents = 5_000_000 }\n\
             [[thresholds.override]]\nimages = ['b']\n\
             critical = { extents = 400_000 }\nwarning = { extents = 500_000 }\n\
             [[thresholds.override]]\nimages = ['c']\n\
             warning = { time_to_critical = '14d', growth_per_day = 'never' }",
        ],
        r#"
        |f.toml:3:37: thresholds.host.critical = "5%" is not above thresholds.host.warning = "5%"
        |    host = { warning = '5%', critical = '5%' }
        |                                        ^^^^
        |    write: another value, or another thresholds.host.warning
        |
        |f.toml:8:18: thresholds.critical.growth_per_day = 200000 is not above thresholds.warning.growth_per_day = 250000
        |    growth_per_day = 200_000
        |                     ^^^^^^^
        |    write: another value, or another thresholds.warning.growth_per_day
        |
        |f.toml:9:20: thresholds.critical.time_to_critical = "2h" is not below thresholds.warning.time_to_critical = "2h"
        |    time_to_critical = '2h'
        |                       ^^^^
        |    write: another value, or another thresholds.warning.time_to_critical
        |
        |f.toml:10:11: thresholds.critical.extents = 5000000 is not above thresholds.override.warning.extents = 5000000
        |    extents = 5_000_000
        |              ^^^^^^^^^
        |    write: another value, or another thresholds.override.warning.extents
        |
        |conf.d/10.toml:6:24: thresholds.override.critical.extents = 400000 is not above thresholds.override.warning.extents = 500000
        |    critical = { extents = 400_000 }
        |                           ^^^^^^^
        |    write: another value, or another thresholds.override.warning.extents
        |
        |conf.d/10.toml:10:32: thresholds.override.warning.time_to_critical = "14d" is further than a forecast reaches, 60 times thresholds.growth_window = "1h"
        |    warning = { time_to_critical = '14d', growth_per_day = 'never' }
        |                                   ^^^^^
        |    write: another value, or another thresholds.growth_window
        "#,
    );
}

/// Each is right by itself, and was refused because of the default of another key.
#[test]
fn a_default_gives_way_to_what_was_written() {
    for text in [
        "[sampling]\ninterval = '1s'",
        "[sampling]\ninterval = '7d'",
        "[sampling]\nprobe_timeout = '2m'",
        "[sampling]\nmap_interval = '1s'",
        "[rescue]\nmin_interval = '1h'",
        "[rescue]\nquiet_after = '1s'",
        "[thresholds]\ngrowth_window = '1m'",
        "[thresholds]\nhost = { warning = '99%' }",
        "[thresholds]\nhost = { critical = '0.1%' }",
        "[thresholds]\nwarning = { extents = 9_000_000 }",
        "[thresholds]\nwarning = { time_to_critical = '365d' }",
        "[thresholds]\ncritical = { extents = 2 }",
        "[thresholds]\ncritical = { growth_per_day = 1 }",
        "[thresholds]\ncritical = { time_to_critical = '15d' }",
        "[thresholds]\ngrowth_window = '1m'\ncritical = { time_to_critical = '1h' }",
        "[thresholds]\ngrowth_window = '1m'\ncritical = { time_to_critical = '59m' }",
        "[[thresholds.override]]\nimages = ['a']\nwarning = { extents = 9_000_000 }",
        "[[thresholds.override]]\nimages = ['a']\ncritical = { extents = 9, growth_per_day = 9 }",
        "[[thresholds.override]]\nimages = ['a']\ncritical = { time_to_critical = '60d' }",
    ] {
        let settings = accepted(text);
        // What it became contradicts nothing, also when every key is written.
        assert_eq!(accepted(&settings.to_toml()), settings, "{text}");
    }
    let sampling = accepted("[sampling]\ninterval = '1s'").sampling;
    assert_eq!(sampling.probe_timeout, Duration::from_secs(1));
    let thresholds = accepted("[thresholds]\ngrowth_window = '1m'").thresholds;
    let hour = Some(Duration::from_secs(3600));
    assert_eq!(thresholds.warning.time_to_critical, hour);
    let raised = "[thresholds]\nwarning = { extents = 9_000_000 }";
    let critical = accepted(raised).thresholds.critical;
    assert_eq!(critical.extents, ExtentCount(90_000_000));
}

#[test]
fn what_was_written_contradicts_over_a_default_between() {
    refused(
        &["[sampling]\nprobe_timeout = '1m'\nmap_interval = '30s'"],
        r#"
        |f.toml:2:17: sampling.probe_timeout = "1m" is longer than sampling.map_interval = "30s"
        |    probe_timeout = '1m'
        |                    ^^^^
        |    write: another value, or another sampling.map_interval
        "#,
    );
}

#[test]
fn paths_and_globs() {
    refused(
        &["[images]\npaths = ['images', '/a[', \"/b\\u0000\"]\n\
           include = ['*.img', 'vm/*.img', '']\nexclude = ['磁{盘', '/ok/*', '**/ok/*']"],
        r#"
        |f.toml:2:10: images.paths: "images" is not an absolute path, or a glob of one
        |    paths = ['images', '/a[', "/b\u0000"]
        |             ^^^^^^^^
        |    write: paths = ["/var/lib/libvirt/images"]
        |
        |f.toml:2:20: images.paths: "/a[" is not an absolute path, or a glob of one
        |    paths = ['images', '/a[', "/b\u0000"]
        |                       ^^^^^
        |    write: paths = ["/var/lib/libvirt/images"]
        |
        |f.toml:2:27: images.paths: "/b\U00000000" is not an absolute path, or a glob of one
        |    paths = ['images', '/a[', "/b\u0000"]
        |                              ^^^^^^^^^^
        |    write: paths = ["/var/lib/libvirt/images"]
        |
        |f.toml:3:21: images.include: "vm/*.img" is not a glob of a file name, or one of a whole path, which begins with / or **
        |    include = ['*.img', 'vm/*.img', '']
        |                        ^^^^^^^^^^
        |    write: include = []
        |
        |f.toml:3:33: images.include: "" is not a glob of a file name, or one of a whole path, which begins with / or **
        |    include = ['*.img', 'vm/*.img', '']
        |                                    ^^
        |    write: include = []
        |
        |f.toml:4:12: images.exclude: "磁{盘" is not a glob of a file name, or one of a whole path, which begins with / or **
        |    exclude = ['磁{盘', '/ok/*', '**/ok/*']
        |               ^^^^^^^
        |    write: exclude = ["*.iso"]
        "#,
    );
}

#[test]
fn what_is_not_toml_hides_only_its_own_file() {
    refused(
        &[
            "[sampling\ninterval = '1m'\nfoo = 1",
            "[images]\nfoo = 1",
            "[images]\npaths = [\n  '/a'\n  '/b'\n]\nexclude = \"*.iso\n[images]",
        ],
        r#"
        |f.toml:1:10: not TOML: unclosed table, expected `]`
        |    [sampling
        |             ^
        |    help: a line is [section] or key = value; text is in quotes: 'text'
        |
        |conf.d/10.toml:2:1: unknown key images.foo
        |    foo = 1
        |    ^^^
        |    help: valid here are paths, include, exclude, min_size, limit
        |
        |conf.d/20.toml:4:3: not TOML: missing comma between array elements, expected `,`
        |      '/b'
        |      ^
        |    help: a line is [section] or key = value; text is in quotes: 'text'
        "#,
    );
}

#[test]
fn what_comes_from_the_file_is_printed_harmlessly() {
    let error = settings(&["[sampling]\n\"a\\nb\\u001b[2J\" = 1\ninterval = \"\u{202e}\u{1b}\""]);
    let error = error.unwrap_err();
    assert!(
        !error.contains(|c: char| c.is_control() && c != '\n'),
        "{error:?}"
    );
    assert!(!error.contains('\u{202e}'), "{error:?}");
}

#[test]
fn a_megabyte_of_nonsense_is_refused_in_good_time() {
    for text in [
        "[images]\npaths = [".to_owned() + &"a,".repeat(1 << 19),
        "a = b\n".repeat(1 << 17),
        "[[[{".repeat(1 << 18),
        (0..100_000).map(|n| format!("k{n} = 1\n")).collect(),
        "[sampling]\ninterval = \"".to_owned() + &"9".repeat(1 << 20) + "\"",
        "x".repeat(1 << 20) + " = 1",
        "a.".repeat(1 << 19) + "a = 1",
    ] {
        let error = settings(&[&text]).unwrap_err();
        assert!(error.len() < 100_000, "{}", error.len());
    }
    // Takes a few seconds in a debug build; what grows with the square would take hours.
}

/// A directory with files, and the main file in it.
fn directory(files: &[(&str, &[u8])]) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("conf.d")).unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let main = directory.path().join("fragwatch.toml");
    (directory, main)
}

/// What is printed for the main file, without the directory.
fn refusal(directory: &TempDir, main: &Path) -> String {
    let error = load(Some(main)).unwrap_err().to_string();
    error.replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn fragments_are_read_in_the_order_of_their_names() {
    let (directory, main) = directory(&[
        (
            "fragwatch.toml",
            b"[sampling]\ninterval = '2m'\nmap_interval = '2h'",
        ),
        ("conf.d/9.toml", b"[sampling]\ninterval = '9m'"),
        (
            "conf.d/10.toml",
            b"[sampling]\ninterval = '10m'\nprobe_timeout = '3s'",
        ),
        ("conf.d/.hidden.toml", b"nonsense"),
        ("conf.d/9.toml~", b"nonsense"),
        ("conf.d/README", b"nonsense"),
    ]);
    let loaded = load(Some(&main)).unwrap();
    assert_eq!(
        loaded.settings.sampling.interval,
        Duration::from_secs(9 * 60)
    );
    assert_eq!(
        loaded.settings.sampling.probe_timeout,
        Duration::from_secs(3)
    );
    let names = ["fragwatch.toml", "conf.d/10.toml", "conf.d/9.toml"];
    assert_eq!(loaded.files, names.map(|name| directory.path().join(name)));
}

#[test]
fn a_default_file_that_is_missing_is_empty() {
    let (directory, main) = directory(&[("conf.d/a.toml", b"[sampling]\ninterval = '2m'")]);
    let (loaded, _, _) = read_files(&main, true);
    assert_eq!(loaded.settings.sampling.interval, Duration::from_secs(120));
    assert_eq!(loaded.files, [directory.path().join("conf.d/a.toml")]);

    let nowhere = directory.path().join("nowhere/fragwatch.toml");
    let (loaded, _, _) = read_files(&nowhere, true);
    assert_eq!(loaded.settings, Settings::default());
    assert!(loaded.files.is_empty());
}

#[test]
fn a_named_file_that_is_missing_is_an_error() {
    let (directory, main) = directory(&[]);
    assert_eq!(
        refusal(&directory, &main),
        "fragwatch.toml: there is no such file\n    \
         help: repair or remove it, or name another configuration with --config FILE"
    );
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let (directory, main) = directory(&[]);
    let rest = "\n    help: repair or remove it, or name another configuration with --config FILE";
    let is = |what: &str| format!("fragwatch.toml: is {what}, not a file{rest}");

    fs::create_dir(&main).unwrap();
    assert_eq!(refusal(&directory, &main), is("a directory"));
    fs::remove_dir(&main).unwrap();

    rustix::fs::mknodat(
        rustix::fs::CWD,
        &main,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(refusal(&directory, &main), is("a pipe"));
    fs::remove_file(&main).unwrap();

    let _socket = UnixListener::bind(&main).unwrap();
    assert_eq!(refusal(&directory, &main), is("a socket"));
    fs::remove_file(&main).unwrap();

    symlink("/dev/zero", &main).unwrap();
    assert_eq!(refusal(&directory, &main), is("a device"));
}

#[test]
fn a_byte_order_mark_is_no_column() {
    let (directory, main) = directory(&[("fragwatch.toml", "\u{feff}foo = 5".as_bytes())]);
    let refusal = refusal(&directory, &main);
    assert!(refusal.starts_with("fragwatch.toml:1:1: unknown key foo\n    foo = 5\n    ^^^\n"));
    fs::write(&main, "\u{feff}[images]\nlimit = 5").unwrap();
    assert_eq!(load(Some(&main)).unwrap().settings.images.limit, 5);
}

#[test]
fn files_that_cannot_be_read_are_all_named() {
    let (directory, main) = directory(&[
        ("fragwatch.toml", b"[sampling]\nintervall = '1m'"),
        ("conf.d/a.toml", b"[images]\npaths = ['/b\xfcro']\n"),
        ("conf.d/b.toml", &vec![b'#'; (1 << 20) + 1]),
        ("conf.d/d.toml", &vec![b'#'; 1 << 20]),
        // Not to be called a contradiction: the file that was not read may set the other side.
        ("conf.d/e.toml", b"[sampling]\ninterval = '1s'"),
    ]);
    symlink("nowhere", directory.path().join("conf.d/c.toml")).unwrap();
    assert_eq!(
        refusal(&directory, &main),
        r#"conf.d/a.toml:2:13: this is not UTF-8
    paths = ['/b\xfcro']
                ^^^^
    help: save the file as UTF-8

conf.d/b.toml: is larger than 1 MiB, no configuration is
    help: repair or remove it, or name another configuration with --config FILE

conf.d/c.toml: there is no such file
    help: repair or remove it, or name another configuration with --config FILE

fragwatch.toml:2:1: unknown key sampling.intervall
    intervall = '1m'
    ^^^^^^^^^
    write: interval = "1m""#
    );
}

#[test]
fn fragments_that_are_no_directory_are_an_error() {
    let directory = TempDir::new().unwrap();
    let main = directory.path().join("fragwatch.toml");
    fs::write(&main, "").unwrap();
    fs::write(directory.path().join("conf.d"), "").unwrap();
    assert_eq!(
        refusal(&directory, &main),
        "conf.d: the directory cannot be read: Not a directory (os error 20)\n    \
         help: make it a directory that can be read, or remove it"
    );
}

#[test]
fn windows_and_blackouts() {
    let settings = settings(&[
        "[maintenance]\ntimezone = 'europe/berlin'\njitter = '30m'\n\
         [[maintenance.window]]\ndays = ['Sat', 'Sun']\nstart = '01:00'\nduration = '4h'\n\
         [[maintenance.blackout]]\nfrom = 2026-12-20\nto = 2027-01-06",
        "[[maintenance.window]]\ndays = ['Wed']\nstart = '23:30'\nduration = '90m'",
    ])
    .unwrap();
    let window = |days: &[Weekday], start, minutes: u64| Window {
        days: days.to_vec(),
        start,
        duration: Duration::from_secs(minutes * 60),
    };
    let maintenance = &settings.maintenance;
    assert_eq!(maintenance.timezone.name(), "Europe/Berlin");
    let weekend = [Weekday::Saturday, Weekday::Sunday];
    assert_eq!(
        maintenance.windows,
        [
            window(&weekend, time(1, 0, 0, 0), 240),
            window(&[Weekday::Wednesday], time(23, 30, 0, 0), 90)
        ]
    );
    let blackout = Blackout {
        from: date(2026, 12, 20),
        to: date(2027, 1, 6),
    };
    assert_eq!(maintenance.blackouts, [blackout]);

    let text = settings.to_toml();
    let (_, text) = text.split_once("[maintenance]\n").unwrap();
    let (text, _) = text.split_once("\n[defrag]").unwrap();
    assert_eq!(
        text,
        r#"timezone = "Europe/Berlin"
jitter = "30m"

[maintenance.lock]
url = ""
group = "default"

[maintenance.hold]
url = ""
query = ""

[[maintenance.window]]
days = ["Sat", "Sun"]
start = "01:00"
duration = "4h"

[[maintenance.window]]
days = ["Wed"]
start = "23:30"
duration = "90m"

[[maintenance.blackout]]
from = 2026-12-20
to = 2027-01-06
"#
    );
}

#[test]
fn windows_that_are_none() {
    refused(
        &[
            "[maintenance]\ntimezone = 'Berlin'\njitter = '2d'\n\
             [[maintenance.window]]\ndays = ['Sat', 'Saturday']\n\
             start = '1am'\nduration = '0s'\n\
             [[maintenance.window]]\nday = ['Sat']\nstart = 01:00:00\nduration = '8d'\n\
             [[maintenance.window]]\ndays = 'Sat'\nstart = '25:00'\n\
             [[maintenance.blackout]]\nfrom = '2026-12-20'\nto = 2026-02-03\n\
             [[maintenance.blackout]]\nfrom = 2026-12-20T10:00:00Z\n\
             [[maintenance.blackout]]\nfrom = 2026-12-20",
            "[[maintenance.blackout]]\nfrom = 2026-02-01\nto = 2026-02-30\n",
        ],
        r#"
        |f.toml:2:12: maintenance.timezone: 'Berlin' is not a time zone such as Europe/Berlin
        |    timezone = 'Berlin'
        |               ^^^^^^^^
        |    write: timezone = "local"
        |
        |f.toml:3:10: maintenance.jitter: "2d" is above "1d"
        |    jitter = '2d'
        |             ^^^^
        |    write: jitter = "0s"
        |
        |f.toml:5:8: maintenance.window.days: "Saturday" is not a day: Mon, Tue, Wed, Thu, Fri, Sat or Sun
        |    days = ['Sat', 'Saturday']
        |           ^^^^^^^^^^^^^^^^^^^
        |    write: days = ["Sat", "Sun"]
        |
        |f.toml:9:1: unknown key maintenance.window.day
        |    day = ['Sat']
        |    ^^^
        |    write: days = ["Sat", "Sun"]
        |
        |f.toml:13:8: maintenance.window.days: 'Sat' is not a list
        |    days = 'Sat'
        |           ^^^^^
        |    write: days = ["Sat", "Sun"]
        |
        |f.toml:16:8: maintenance.blackout.from: '2026-12-20' is not a date such as 2026-12-20, without quotes
        |    from = '2026-12-20'
        |           ^^^^^^^^^^^^
        |    write: from = 2026-12-20
        |
        |f.toml:19:8: maintenance.blackout.from: 2026-12-20T10:00:00Z is not a date such as 2026-12-20, without quotes
        |    from = 2026-12-20T10:00:00Z
        |           ^^^^^^^^^^^^^^^^^^^^
        |    write: from = 2026-12-20
        |
        |f.toml:20:1: maintenance.blackout: to is missing
        |    [[maintenance.blackout]]
        |    ^^^^^^^^^^^^^^^^^^^^^^^^
        |    write: to = 2027-01-06
        |
        |conf.d/10.toml:3:6: not TOML: invalid date, expected day between 01 and 28
        |    to = 2026-02-30
        |         ^^^^^^^^^^
        |    help: a line is [section] or key = value; text is in quotes: 'text'
        "#,
    );
}

#[test]
fn days_that_are_none() {
    for day in ["'sun'", "'Moonday'", "'Thurs'", "5", "'Mon-Fri'"] {
        let text =
            format!("[[maintenance.window]]\ndays = [{day}]\nstart = '01:00'\nduration = '1h'");
        let error = settings(&[&text]).unwrap_err();
        let is_named = error.contains("is not a day: Mon, Tue") || day == "5";
        assert!(
            is_named && error.contains("write: days = [\"Sat\", \"Sun\"]"),
            "{error}"
        );
    }
}

#[test]
fn a_list_is_no_section() {
    for text in [
        "control = ['/a', 'root']",
        "[[control]]\nsocket = '/a'",
        "[thresholds]\nhost = ['1%', '2%']",
        "[klog]\nrule = [['name', 'pattern', 'observe']]",
        "[[thresholds.override]]\nimages = ['a']\nwarning = [1]",
    ] {
        let error = settings(&[text]).unwrap_err();
        assert!(error.contains("is a section, not a list"), "{error}");
    }
}

#[test]
fn mistakes_in_maintenance_alone_are_tolerable() {
    let text = |count: usize| {
        let wrong = "[[maintenance.blackout]]\nfrom = 'x'\nto = 2026-01-01\n";
        format!("{}[images]\npaths = ['/mine']\n", wrong.repeat(count))
    };
    for count in [30, 300] {
        let (_directory, main) = directory(&[("fragwatch.toml", text(count).as_bytes())]);
        let (loaded, error) = load_to_start(Some(&main)).unwrap();
        assert_eq!(loaded.settings.images.paths, ["/mine"]);
        let more = format!("and {} more", count - 20);
        assert!(error.unwrap().to_string().contains(&more));
    }
    for unknown in [
        "[[maintenance.window]]\ndays = ['Sat']\nfrom = '01:00'",
        "[maintenance.lok]\nurl = 'http://a'",
        "[maintenance]\nwindow = 5",
        "maintenance = 5",
    ] {
        let text = format!("rescue.enabled = false\n{unknown}");
        let (_directory, main) = directory(&[("fragwatch.toml", text.as_bytes())]);
        let (loaded, error) = load_to_start(Some(&main)).unwrap();
        assert!(error.is_some(), "{text}");
        assert!(!loaded.settings.rescue.enabled, "{text}");
        assert!(loaded.settings.maintenance.windows.is_empty(), "{text}");
    }
    let elsewhere = "[maintenance]\njitter = 1\n[images]\nlimit = 0";
    let (_directory, main) = directory(&[("fragwatch.toml", elsewhere.as_bytes())]);
    assert!(load_to_start(Some(&main)).is_err());
}

#[test]
fn windows_that_contradict_themselves() {
    refused(
        &["[maintenance]\njitter = '40m'\n\
             [[maintenance.window]]\ndays = []\nstart = '01:00'\nduration = '2h'\n\
             [[maintenance.window]]\ndays = ['Sat']\nstart = '01:00'\nduration = '1h'\n\
             [[maintenance.blackout]]\nfrom = 2026-12-20\nto = 2026-12-19"],
        r#"
        |f.toml:2:10: maintenance.jitter = "40m" is longer than half of maintenance.window.duration = "1h"
        |    jitter = '40m'
        |             ^^^^^
        |    write: another value, or another maintenance.window.duration
        |
        |f.toml:4:8: maintenance.window.days: there is no day
        |    days = []
        |           ^^
        |    write: days = ["Sat", "Sun"]
        |
        |f.toml:13:6: maintenance.blackout.to = 2026-12-19 is before maintenance.blackout.from = 2026-12-20
        |    to = 2026-12-19
        |         ^^^^^^^^^^
        |    write: another value, or another maintenance.blackout.from
        "#,
    );
}

/// Any settings that are valid.
fn any_settings() -> impl Strategy<Value = Settings> {
    let path = "/[a-z \"'\\\\é磁\u{1}\n\u{202e}]{0,12}";
    let glob = "[*?]{0,2}[a-z \"'é磁\t\u{1b}]{1,8}";
    let images = (
        prop::collection::vec(path, 0..4),
        prop::collection::vec(glob, 0..4),
        prop::collection::vec(glob, 0..4),
        any::<u64>(),
        1..=u32::MAX,
    )
        .prop_map(|(paths, include, exclude, min_size, limit)| Images {
            paths,
            include,
            exclude,
            min_size: Bytes(min_size),
            limit,
        });
    let sampling = (
        1000..1_000_000_000_u64,
        0..1_000_000_000_u64,
        any::<bool>(),
        1..1_u64 << 48,
    )
        .prop_flat_map(|(interval, more, maps, extents)| {
            (100..=interval).prop_map(move |timeout| Sampling {
                interval: Duration::from_millis(interval),
                map_interval: maps.then(|| Duration::from_millis(interval + more)),
                map_max_extents: ExtentCount(extents),
                probe_timeout: Duration::from_millis(timeout),
            })
        });
    let history = (
        "(/[a-z \"'\\\\é磁\u{1}\n]{1,8}){1,3}",
        86_400_000..3_000_000_000_000_u64,
    )
        .prop_map(|(path, retention)| History {
            path: PathBuf::from(path),
            retention: Duration::from_millis(retention),
        });
    let textfile = proptest::option::of("/[a-z \"'\\\\é磁\u{1}\n\u{202e}]{0,12}[.]prom");
    let metrics = (any::<std::net::SocketAddr>(), textfile).prop_map(|(mut listen, textfile)| {
        if let std::net::SocketAddr::V6(address) = &mut listen {
            // Cannot be written in an address, nor does anybody need it to listen.
            address.set_flowinfo(0);
        }
        Metrics {
            listen,
            textfile: textfile.map(PathBuf::from),
        }
    });
    let control = (path, "[a-z_]{1,8}").prop_map(|(socket, group)| Control {
        socket: PathBuf::from(socket),
        group,
    });
    let all = (
        images,
        sampling,
        history,
        any_thresholds(),
        any_klog(),
        any_rescue(),
        any_maintenance(),
        any_defrag(),
        metrics,
        control,
    );
    all.prop_map(
        |(
            images,
            sampling,
            history,
            thresholds,
            klog,
            mut rescue,
            maintenance,
            defrag,
            metrics,
            control,
        )| {
            let by_file = klog.files_may_rescue && !klog.files.is_empty();
            rescue.enabled &= klog.kmsg || by_file || rescue.stall_after.is_some();
            Settings {
                images,
                sampling,
                history,
                thresholds,
                klog,
                rescue,
                maintenance,
                defrag,
                metrics,
                control,
                ..Settings::default()
            }
        },
    )
}

/// A command, or none.
fn any_command() -> impl Strategy<Value = Vec<String>> {
    let arguments = prop::collection::vec("[^\0]{0,8}", 0..3);
    let command = prop::option::of(("/[a-z \"'\\\\é磁\u{1}\n]{0,8}", arguments));
    command.prop_map(|command| {
        let words = command.map(|(program, arguments)| [vec![program], arguments].concat());
        words.unwrap_or_default()
    })
}

/// A warning below, and critical from there on.
type Pair<T> = (Option<T>, Option<T>);

fn any_limits() -> impl Strategy<Value = (Pair<ExtentCount>, Pair<ExtentCount>, Pair<Duration>)> {
    let below = 1..1_u64 << 40;
    let extents = (below.clone(), below.clone())
        .prop_map(|(low, more)| (Some(ExtentCount(low)), Some(ExtentCount(low + more))));
    let rate = (any::<(bool, bool)>(), below.clone(), below).prop_map(|(set, low, more)| {
        let rate = |set: bool, count| set.then_some(ExtentCount(count));
        (rate(set.0, low), rate(set.1, low + more))
    });
    let time = (any::<(bool, bool)>(), 1..1000_u64, 1..1000_u64).prop_map(|(set, near, more)| {
        let time = |set: bool, seconds| set.then_some(Duration::from_secs(seconds));
        (time(set.0, near + more), time(set.1, near))
    });
    (extents, rate, time)
}

fn any_override() -> impl Strategy<Value = Override> {
    let images = prop::collection::vec("[*?]{0,2}[a-z \"'é磁\t\u{1b}]{1,8}", 1..3);
    (images, any_limits(), any::<[bool; 3]>()).prop_map(|(images, (extents, rate, time), set)| {
        // Both sides or none: against those of the rest one alone could be wrong.
        let changes = |extents, rate: Option<ExtentCount>, time| LimitChanges {
            extents: Some(extents).filter(|_| set[0]).flatten(),
            growth_per_day: Some(rate.map(ExtentsPerDay::from_count)).filter(|_| set[1]),
            time_to_critical: Some(time).filter(|_| set[2]),
        };
        Override {
            images,
            warning: changes(extents.0, rate.0, time.0),
            critical: changes(extents.1, rate.1, time.1),
        }
    })
}

fn any_thresholds() -> impl Strategy<Value = Thresholds> {
    let host = (0..500_000_u32, 1..500_000_u32).prop_map(|(warning, more)| HostLimits {
        warning: Share(warning),
        critical: Share(warning + more),
    });
    let overrides = prop::collection::vec(any_override(), 0..3);
    let rest = (
        60..1_000_000_u64,
        500_000..=1_000_000_u32,
        any_command(),
        host,
        overrides,
    );
    (any_limits(), rest).prop_map(|((extents, rate, time), rest)| {
        let (window, hysteresis, hook, host, overrides) = rest;
        let limits = |extents: Option<ExtentCount>, rate: Option<ExtentCount>, time| Limits {
            extents: extents.unwrap_or_default(),
            growth_per_day: rate.map(ExtentsPerDay::from_count),
            time_to_critical: time,
        };
        Thresholds {
            growth_window: Duration::from_secs(window),
            hysteresis: Share(hysteresis),
            hook,
            warning: limits(extents.0, rate.0, time.0),
            critical: limits(extents.1, rate.1, time.1),
            host,
            overrides,
        }
    })
}

fn any_klog() -> impl Strategy<Value = Klog> {
    let name = "[a-z][a-z0-9_]{0,8}";
    let pattern = "[a-z \"'é磁\t\u{1b}\n][a-zé'\"]{0,5}(\\\\[dw(]|[.]\\*|[|]x){0,2}";
    let action = prop::sample::select(vec![RuleAction::Observe, RuleAction::Rescue]);
    let rules = prop::collection::vec((name, pattern, action), 0..3).prop_map(|rules| {
        let rule = |(n, (name, pattern, action))| RuleDefinition {
            // No two are called the same.
            name: format!("{name}_{n}"),
            pattern,
            action,
        };
        rules.into_iter().enumerate().map(rule).collect()
    });
    let file = "/[a-z \"'\\\\é磁\u{1}\n\u{202e}\\[{]{0,12}";
    let files = prop::collection::vec(file.prop_map(PathBuf::from), 0..3);
    // Compiling takes its time.
    let rules = prop_oneof![3 => Just(Vec::new()), 1 => rules];
    (any::<bool>(), files, any::<bool>(), rules).prop_map(
        |(kmsg, files, files_may_rescue, rules)| Klog {
            kmsg,
            files,
            files_may_rescue,
            rules,
        },
    )
}

fn any_rescue() -> impl Strategy<Value = Rescue> {
    let steps = prop::collection::vec(prop::sample::select(RescueStep::ALL.to_vec()), 1..6);
    let times = (1000..1_000_000_000_u64).prop_flat_map(|quiet| (Just(quiet), 0..=quiet));
    let stall = prop::option::of((1000..1_000_000_u64).prop_map(Duration::from_millis));
    let switches = (any::<bool>(), any::<bool>());
    let limit = 1..=MAX_ACTIONS_PER_HOUR;
    (switches, steps, times, limit, stall, any_command()).prop_map(
        |(
            (enabled, dry_run),
            steps,
            (quiet, interval),
            max_actions_per_hour,
            stall_after,
            hook,
        )| {
            Rescue {
                enabled,
                dry_run,
                steps,
                min_interval: Duration::from_millis(interval),
                quiet_after: Duration::from_millis(quiet),
                max_actions_per_hour,
                stall_after,
                hook,
            }
        },
    )
}

fn any_maintenance() -> impl Strategy<Value = Maintenance> {
    let zone = prop::sample::select(vec!["local", "UTC", "Europe/Berlin", "Asia/Kolkata"]);
    let days = prop::collection::vec(0..7_i8, 1..8);
    let window = (days, 0..24_i8, 0..60_i8, 60_000..=604_800_000_u64);
    let windows = prop::collection::vec(window, 0..3).prop_map(|windows| {
        let window = |(days, hour, minute, duration): (Vec<i8>, _, _, _)| Window {
            days: days
                .into_iter()
                .map(|day| Weekday::from_monday_zero_offset(day).unwrap())
                .collect(),
            start: time(hour, minute, 0, 0),
            duration: Duration::from_millis(duration),
        };
        windows.into_iter().map(window).collect::<Vec<_>>()
    });
    let blackout = (0..9999_i16, 1..=12_i8, 1..=28_i8, 0..1000_i32);
    let blackouts = prop::collection::vec(blackout, 0..3).prop_map(|blackouts| {
        let blackout = |(year, month, day, days)| {
            let from = date(year, month, day);
            let length = jiff::Span::new().days(days);
            let to = from.saturating_add(length);
            Blackout { from, to }
        };
        blackouts.into_iter().map(blackout).collect()
    });
    (zone, windows, blackouts, 0..=100_u32).prop_map(|(zone, windows, blackouts, percent)| {
        let shortest = windows.iter().map(|window| window.duration).min();
        let most = (shortest.unwrap_or(Duration::MAX) / 2).min(Duration::from_secs(86_400));
        let jitter = (most / 100 * percent).as_millis();
        Maintenance {
            timezone: Zone::named(zone).unwrap(),
            jitter: Duration::from_millis(u64::try_from(jitter).unwrap()),
            lock: FleetLock {
                url: ["", "http://locks:8080/fleet"][percent as usize % 2].to_owned(),
                group: format!("array-{percent}"),
            },
            hold: Hold {
                url: ["", "http://[::1]:9090"][percent as usize / 2 % 2].to_owned(),
                query: format!("ALERTS{{severity=\"critical\"}} > {percent}"),
            },
            windows,
            blackouts,
        }
    })
}

fn any_defrag() -> impl Strategy<Value = Defrag> {
    let severity = prop::sample::select(vec![Severity::Ok, Severity::Warning, Severity::Critical]);
    let engines = prop::collection::vec(prop::sample::select(Engine::ALL.to_vec()), 1..3);
    let time = || (1..1_000_000_000_u64).prop_map(Duration::from_millis);
    let numbers = (0..=900_000_u32, 1_u64 << 20.., 1..=100_u32, 1..=64_u32);
    let times = (time(), time(), time());
    (
        severity,
        engines,
        any::<bool>(),
        numbers,
        times,
        prop::collection::vec("[1-9][.][0-9a-z._+~-]{0,12}", 0..3),
        (any_command(), any_command()),
    )
        .prop_map(
            |(from, engines, dry_run, numbers, times, trusted_kernels, hooks)| Defrag {
                from,
                dry_run,
                keep_free: Share(numbers.0),
                cooldown: times.0,
                bandwidth: BytesPerSecond(numbers.1),
                max_io_pressure: numbers.2,
                max_swap_stall: times.1,
                stall_target: times.2,
                blockcopy: BlockCopy {
                    enabled: engines.contains(&Engine::BlockCopy),
                    directory: PathBuf::from("/srv/copies"),
                },
                engines,
                parallel: numbers.3,
                trusted_kernels,
                hook_before: hooks.0,
                hook_after: hooks.1,
            },
        )
}

/// Text that is nearly a configuration: its tokens in any order.
fn nearly_toml() -> impl Strategy<Value = String> {
    // Between bars.
    let words = "[images]|[sampling]|[thresholds|[[metrics]]|]|\n|\r\n|\r|\t| |=| = |.|,|\"|'|\"\"\"|\
        {|}|[|#|paths|include|min_size|limit|interval|map_interval|warning|critical|extents|\
        listen|[control]|textfile|socket|[klog]|[klog.rule]|[[klog.rule]]|\
        [[thresholds.override]]|\nimages = ['*']\n|hysteresis|growth_per_day|\
        time_to_critical|'5%'|[rescue]|[maintenance]|[[maintenance.window]]|\
        [[maintenance.blackout]]|timezone|days|start|duration|from|to|jitter|'Sat'|'25:00'|\
        2026-02-30|\nname = 'a'\n|\npattern = 'a'\n|rule|files|kmsg|pattern|action|steps|\
        hook|'('|\"\\\\(\"|\"\\d\"|'rescue'|yes|60|-1|1.5|0x_|5m|\"5m\"|'never'|true|inf|\
        2026-01-01|\"*[\"|'/a'|é|磁|\u{feff}|\0|\u{1b}|\\u|99999999999999999999999";
    let words: Vec<_> = words.split('|').collect();
    prop::collection::vec(prop::sample::select(words), 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn printed_settings_read_back(settings in any_settings()) {
        let text = settings.to_toml();
        prop_assert_eq!(super::tests::settings(&[&text]), Ok(settings));
    }

    /// The rescue asks no more of its settings than is asked here.
    #[test]
    fn settings_that_are_accepted_make_a_ladder(
        interval in 0..5_u64, quiet in 0..5_u64, actions in 0..4000_u32, steps in 0..3_usize,
    ) {
        let text = format!(
            "[rescue]\nmin_interval = '{interval}s'\nquiet_after = '{quiet}s'\n\
             max_actions_per_hour = {actions}\nsteps = [{}]", "'drop_all', ".repeat(steps));
        let loaded = settings(&[&text]);
        let rescue = loaded.clone().map_or_else(
            |_| Rescue {
                steps: vec![RescueStep::DropAll; steps],
                min_interval: Duration::from_secs(interval),
                quiet_after: Duration::from_secs(quiet),
                max_actions_per_hour: actions,
                ..Rescue::default()
            },
            |settings| settings.rescue,
        );
        let ladder = Ladder::new(LadderSettings {
            steps: rescue.steps,
            min_interval: rescue.min_interval,
            quiet_after: rescue.quiet_after,
            max_actions_per_hour: rescue.max_actions_per_hour,
        });
        prop_assert_eq!(loaded.is_ok(), ladder.is_ok());
    }

    #[test]
    fn no_text_panics(one: String, two in nearly_toml(), three in nearly_toml()) {
        for texts in [vec![one.as_str()], vec![two.as_str(), three.as_str()]] {
            if let Err(error) = settings(&texts) {
                prop_assert!(!error.is_empty());
                prop_assert!(!error.contains(|c: char| c.is_control() && c != '\n'));
            }
        }
    }

    #[test]
    fn no_file_panics(bytes: Vec<u8>) {
        let (_directory, main) = directory(&[("fragwatch.toml", &bytes)]);
        let _ = load(Some(&main));
    }
}
