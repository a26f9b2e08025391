//! Extracts the kernel's own text from a line of a log file. Pure.

use super::record::split_once;
use super::rules::without_printk_prefix;
use crate::sys::proc::number;

/// The kernel's own text in a log line; `None` if another or an unknown program wrote it.
///
/// ```text
/// Nov 20 22:58:01 host kernel: [12345.678901] XFS: a text        traditional, and journalctl
/// 2026-11-20T22:58:01.123456+00:00 host kernel: XFS: a text      rsyslog since Debian 12
/// <3>1 2026-11-20T22:58:01Z host kernel - - - XFS: a text        RFC 5424
/// … kernel: message repeated 2 times: [ XFS: a text]             $RepeatedMsgReduction
/// [12345.678901] XFS: a text                                     dmesg, and dmesg -T
/// <3>XFS: a text                                                 dmesg -r
/// ```
///
/// The program name must be in its place: a line of qemu may quote these from a guest's console.
pub fn kernel_text(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii_end();
    let (marked, line) = match line.strip_prefix(b"<") {
        Some(inside) => {
            let (priority, rest) = split_once(inside, b'>')?;
            // Facility × 8 + level; the kernel's facility is 0.
            if number(priority)? > 7 {
                return None;
            }
            (true, rest)
        }
        None => (false, line),
    };
    if let Some(rest) = line.strip_prefix(b"1 ")
        && let Some((time, rest)) = split_once(rest, b' ')
        && is_iso_time(time)
    {
        return text_of_rfc5424(rest);
    }
    if let Some(rest) = after_time(line) {
        let (_host, rest) = split_once(rest, b' ')?;
        let text = rest.strip_prefix(b"kernel:")?;
        return Some(text_of_message(text));
    }
    let text = without_printk_prefix(line);
    if marked || text.len() < line.len() {
        return Some(text);
    }
    let (time, text) = split_once(line.strip_prefix(b"[")?, b']')?;
    is_calendar_time(time).then(|| text.strip_prefix(b" ").unwrap_or(text))
}

/// Parses what follows the timestamp; the message must have no structured data.
fn text_of_rfc5424(rest: &[u8]) -> Option<&[u8]> {
    let mut fields = rest.splitn(6, |byte| *byte == b' ');
    let [_host, program, _process, _id, data, message] =
        std::array::from_fn(|_| fields.next().unwrap_or_default());
    (program == b"kernel" && data == b"-").then(|| text_of_message(message))
}

fn text_of_message(message: &[u8]) -> &[u8] {
    let message = message.trim_ascii_start();
    let repeated = || {
        let (count, rest) = split_once(message.strip_prefix(b"message repeated ")?, b' ')?;
        number(count)?;
        rest.strip_prefix(b"times: [")?.strip_suffix(b"]")
    };
    without_printk_prefix(repeated().unwrap_or(message).trim_ascii_start())
}

fn after_time(line: &[u8]) -> Option<&[u8]> {
    // `Nov  1 22:58:01 `
    if let Some((time, rest)) = line.split_at_checked(16)
        && fits(time, b"aaa 99 99:99:99 ")
    {
        return Some(rest);
    }
    let (time, rest) = split_once(line, b' ')?;
    is_iso_time(time).then_some(rest)
}

/// `2026-11-20T22:58:01`, optionally with a fraction and a zone.
fn is_iso_time(time: &[u8]) -> bool {
    time.split_at_checked(19).is_some_and(|(time, zone)| {
        fits(time, b"9999-99-99T99:99:99")
            && zone
                .iter()
                .all(|byte| byte.is_ascii_digit() || b".,:+-Z".contains(byte))
    })
}

/// `Fri Nov 20 22:58:01 2026`
fn is_calendar_time(time: &[u8]) -> bool {
    fits(time, b"aaa aaa 99 99:99:99 9999")
}

/// Whether a text has the given form: `a` is any letter, `9` a digit or a padding space.
fn fits(text: &[u8], form: &[u8]) -> bool {
    text.len() == form.len()
        && text.iter().zip(form).all(|(byte, form)| match form {
            b'a' => byte.is_ascii_alphabetic(),
            b'9' => byte.is_ascii_digit() || *byte == b' ',
            form => byte == form,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text(line: &str) -> Option<&str> {
        kernel_text(line.as_bytes()).map(|text| std::str::from_utf8(text).unwrap())
    }

    #[test]
    fn the_forms_of_a_line() {
        let xfs = "XFS: CPU 0/KVM(1) possible memory allocation deadlock size 8 in kmem_alloc (mode:0x2d40)";
        for before in [
            "Nov 20 22:58:01 host kernel: ",
            "Nov  1 22:58:01 host kernel: [12345.678901] ",
            "Nov 20 22:58:01 host kernel:[    0.000000] ",
            "Nov 20 22:58:01 host kernel: [    1.000000][    T1] ",
            "2026-11-20T22:58:01.123456+00:00 host kernel: [12345.678901] ",
            "2026-11-20T22:58:01+0000 host.example.org kernel: ",
            "2026-11-20T22:58:01Z host kernel: ",
            "<3>",
            "<0>[    5.123456] ",
            "[12345.678901] ",
            "[    5.123456] [  T123] ",
            "[Fri Nov 20 22:58:01 2026] ",
            "[Sun Nov  1 22:58:01 2026] ",
            "<3>Nov 20 22:58:01 host kernel: ",
            "<3>1 2026-11-20T22:58:01.123456+00:00 host kernel - - - ",
            "1 2026-11-20T22:58:01Z host kernel - - -  [12345.678901] ",
        ] {
            for after in ["", "\r", " \n"] {
                assert_eq!(
                    text(&format!("{before}{xfs}{after}")),
                    Some(xfs),
                    "{before}"
                );
            }
        }
        assert_eq!(
            text("Nov 20 22:58:01 host kernel: message repeated 12 times: [ [1.5] XFS: [7] a]"),
            Some("XFS: [7] a")
        );
        assert_eq!(
            text("Nov 20 22:58:01 host kernel: [drm] initialised"),
            Some("[drm] initialised")
        );
        assert_eq!(text("Nov 20 22:58:01 host kernel:"), Some(""));
    }

    #[test]
    fn what_the_kernel_did_not_write() {
        let xfs = "XFS: possible memory allocation deadlock in kmem_alloc (mode:0x250)";
        for before in [
            "",
            "kernel: ",
            "host kernel: ",
            "<11>",
            "<>",
            "<3",
            "<30>[   1.5] ",
            "[drm] ",
            "[Fri Nov 20 22:58:01 20x6] ",
            "Nov 20 22:58:01 host qemu-system-x86_64[812]: ",
            "Nov 20 22:58:01 host qemu: [    1.5] ",
            "Nov 20 22:58:01 host virtlogd[9]: Nov 20 22:58:01 guest kernel: [    1.5] ",
            "Nov 20 22:58:01 host kernel[1]: ",
            "Nov 20 22:58:01 host kernel-tool: ",
            "Nov 20 22:58:01 host  kernel: ",
            "<3>Nov 20 22:58:01 host qemu: kernel: ",
            "2026-11-20T22:58:01.123456+00:00 host qemu: host kernel: [1.5] ",
            "2026-11-20T22:58:01.1x host kernel: ",
            "1 2026-11-20T22:58:01Z host qemu - - - kernel: ",
            "1 2026-11-20T22:58:01Z host kernel - - [a=\"b\"] ",
        ] {
            assert_eq!(text(&format!("{before}{xfs}")), None, "{before}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(
            words in vec(prop::sample::select(WORDS), 0..10),
            bytes: Vec<u8>,
        ) {
            let _ = kernel_text(&[words.concat().as_bytes(), &bytes].concat());
            let _ = kernel_text(&bytes);
        }
    }

    const WORDS: &[&str] = &[
        "<",
        "3",
        ">",
        "1 ",
        "[",
        "]",
        "[  1.5] ",
        " ",
        "Nov 20 22:58:01 ",
        "2026-11-20T22:58:01",
        "Fri Nov 20 22:58:01 2026",
        "Z ",
        "host ",
        "kernel:",
        "kernel ",
        "- ",
        "message repeated ",
        "times: [",
    ];
}
