//! Which trigger is effective on the running kernel.

use crate::model::path::printable;

/// Describes the effective trigger of a kernel (`uname -r`) to the operator. From 6.9 on, none logs
/// that XFS waits for memory.
pub fn effective_trigger(release: &str, detects_stalls: bool) -> String {
    // RHEL and what is made of it, Oracle's UEK, SUSE, Amazon, Tencent, openEuler, Anolis take XFS
    // from later kernels.
    const MIXED: [&str; 9] = [
        ".el", "uek", "-default", ".amzn", "tlinux", ".tl", ".oe", ".an", "-cip",
    ];
    let numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut numbers = numbers.map(|digits| digits.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let never = version >= Some((6, 9));
    let mixed = version.is_none() || MIXED.iter().any(|vendor| release.contains(vendor));
    let logs = match (never, mixed) {
        (true, _) => "never logs when XFS waits for memory (none does from 6.9 on)",
        (_, false) => "logs when XFS waits for memory",
        _ => "may or may not log when XFS waits for memory (its vendor mixes versions)",
    };
    let detector = match (never, detects_stalls) {
        (true, true) => "the stall detector is the trigger",
        (false, true) => "the stall detector is on as well",
        (true, false) => {
            "the stall detector is off: only an own rule or a log file can start a rescue"
        }
        (false, false) => "the stall detector is off",
    };
    let kernel = printable(release.as_bytes());
    format!("kernel {kernel} {logs}; {detector}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_trigger_of_a_kernel() {
        let (never, printed, uncertain) = ("never logs", "logs", "may or may not log");
        for (release, logs) in [
            ("6.18.44", never),
            ("6.9.0-rc1", never),
            ("7.3.4-1-amd64", never),
            ("6.12.0-55.el10.x86_64", never),
            ("6.8.0-45-generic", printed),
            ("6.1.0-37-amd64", printed),
            ("4.4.0-210-generic", printed),
            ("5.14.0-503.el9.x86_64", uncertain),
            ("6.4.0-150600.23-default", uncertain),
            ("5.15.0-200.131.27.el8uek.x86_64", uncertain),
            ("what", uncertain),
        ] {
            let text = effective_trigger(release, true);
            let begin = format!("kernel {release} {logs} when XFS waits for memory");
            assert!(text.starts_with(&begin), "{text}");
            let is_the_trigger = text.ends_with("the stall detector is the trigger");
            assert_eq!(is_the_trigger, logs == never, "{text}");
        }
        assert!(effective_trigger("6.18.44", false).contains("only an own rule"));
    }
}
