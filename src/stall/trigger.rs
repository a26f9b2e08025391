//! Which trigger is effective on the running kernel.

use crate::model::path::printable;

/// Whether a kernel logs that XFS waits for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// It does.
    Printed,
    /// It never does (6.9 and later).
    Never,
    /// Unknown: the vendor mixes versions.
    Uncertain,
}

impl Message {
    /// Determines this from a kernel release (`uname -r`).
    pub fn of(release: &str) -> Message {
        // RHEL and what is made of it, Oracle's UEK, SUSE, Amazon, Tencent, openEuler, Anolis take
        // XFS from later kernels.
        const MIXED: [&str; 9] = [
            ".el", "uek", "-default", ".amzn", "tlinux", ".tl", ".oe", ".an", "-cip",
        ];
        let mut numbers = release
            .split(|character: char| !character.is_ascii_digit())
            .map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Message::Uncertain;
        };
        if (major, minor) >= (6, 9) {
            Message::Never
        } else if MIXED.iter().any(|vendor| release.contains(vendor)) {
            Message::Uncertain
        } else {
            Message::Printed
        }
    }
}

/// Describes the effective trigger to the operator.
pub fn effective_trigger(release: &str, detects_stalls: bool) -> String {
    let message = Message::of(release);
    let logs = match message {
        Message::Printed => "logs when XFS waits for memory",
        Message::Never => "never logs when XFS waits for memory (none does from 6.9 on)",
        Message::Uncertain => {
            "may or may not log when XFS waits for memory (its vendor mixes versions)"
        }
    };
    let detector = match (message, detects_stalls) {
        (Message::Never, true) => "the stall detector is the trigger",
        (_, true) => "the stall detector is on as well",
        (Message::Never, false) => {
            "the stall detector is off: only an own rule or a log file can start a rescue"
        }
        (_, false) => "the stall detector is off",
    };
    let kernel = printable(release.as_bytes());
    format!("kernel {kernel} {logs}; {detector}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_trigger_of_a_kernel() {
        for (release, message) in [
            ("6.18.44", Message::Never),
            ("6.9.0-rc1", Message::Never),
            ("7.3.4-1-amd64", Message::Never),
            ("6.12.0-55.el10.x86_64", Message::Never),
            ("6.8.0-45-generic", Message::Printed),
            ("6.1.0-37-amd64", Message::Printed),
            ("4.4.0-210-generic", Message::Printed),
            ("5.14.0-503.el9.x86_64", Message::Uncertain),
            ("6.4.0-150600.23-default", Message::Uncertain),
            ("5.15.0-200.131.27.el8uek.x86_64", Message::Uncertain),
            ("what", Message::Uncertain),
        ] {
            assert_eq!(Message::of(release), message, "{release}");
            assert!(effective_trigger(release, true).starts_with(&format!("kernel {release} ")));
        }
        assert!(effective_trigger("6.18.44", false).contains("only an own rule"));
    }
}
