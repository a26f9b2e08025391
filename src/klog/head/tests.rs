use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const XFS: &str =
    "XFS: CPU 0/KVM(1) possible memory allocation deadlock size 8 in kmem_alloc (mode:0x2d40)";

fn kernel_text(line: &[u8]) -> Option<&[u8]> {
    match read(line) {
        Reading::Kernel { text, .. } => Some(text),
        _ => None,
    }
}

fn text(line: &str) -> Option<&str> {
    kernel_text(line.as_bytes()).map(|text| std::str::from_utf8(text).unwrap())
}

#[test]
fn the_forms_of_a_line() {
    for before in [
        "Nov 20 22:58:01 host kernel: ",
        "Nov  1 22:58:01 host kernel: [12345.678901] ",
        "Nov 20 22:58:01 host kernel:[    0.000000] ",
        "Nov 20 22:58:01 host kernel: [    1.000000][    T1] ",
        "Nov 20 22:58:01 host kernel: <3>",
        "Nov 20 22:58:01.123456 host kernel: ",
        "2026-11-20T22:58:01.123456+00:00 host kernel: [12345.678901] ",
        "2026-11-20T22:58:01+0000 host.example.org kernel: ",
        "2026-11-20T22:58:01Z host kernel: ",
        "2026-11-20 22:58:01 host kernel[-] err: [  812.000001] ",
        "2026-11-20 22:58:01 host kernel[-]: ",
        "2026 Nov 20 22:58:01.123 host kernel: ",
        "20261120225801 host kernel: ",
        "1763679481 source@host/host kernel: ",
        "1763679481.123456 host kernel: ",
        "Thu Nov 20 22:58:01 2026 kern.err kernel: ",
        "Thu 2026-11-20 22:58:01 CET host kernel: ",
        "Thu 2026-11-20 22:58:01 +03 kernel: ",
        "Nov 20 22:58:01 kernel: ",
        "Nov 20 22:58:01 host kern.err kernel: ",
        "Nov 20 22:58:01 kern.err host kernel: ",
        "Nov 20 22:58:01 host kern.err<3> kernel: ",
        "Nov 20 22:58:01 <0.3> host kernel: ",
        "Nov 20 22:58:01 host kern err kernel: ",
        "Nov 20 22:58:01 host err kernel: ",
        "Nov 20 22:58:01 mail kernel: ",
        "kern.err Nov 20 22:58:01 host kernel: ",
        "Nov 20 22:58:01 [kernel] ",
        "Nov 20 22:58:01 host kernel[0]: ",
        "nov. 20 22:58:01 host kernel: ",
        "20 août 22:58:01 host kernel: ",
        "1 août 22:58:01 host kernel: ",
        " 2월 20 22:58:01 host kernel: ",
        "11月 20 22:58:01 host kernel: ",
        "Thg 11 20 22:58:01 host kernel: ",
        "Th11 20 22:58:01 host kernel: ",
        "de nov. 20 22:58:01 host kernel: ",
        "<3>",
        "<0>[    5.123456] ",
        "[12345.678901] ",
        "[    5.123456] [  T123] ",
        "[Fri Nov 20 22:58:01 2026] ",
        "[Sun Nov  1 22:58:01 2026] ",
        "[Fr 20. Nov 22:58:01 2026] ",
        "[수 11월 20 22:58:01 2026] ",
        "[Fri Nov 20 22:58:01 2026 <    0.000012>] ",
        "[  812.000001 <    0.000123>] ",
        "[<    0.000123>] ",
        "[  +0.000123] ",
        "[Nov20 22:58] ",
        "[Nov 1 22:58] ",
        "[nov.20 22:58] ",
        "kern  :err   : [  812.000001] ",
        "kern  :warn  : [Fri Nov 20 22:58:01 2026] ",
        "kern  :err   : ",
        "2026-11-20T22:58:01,123456+01:00 ",
        "kern  :err   : 2026-11-20T22:58:01,123456+01:00 ",
        "[  812.000001] host kernel: ",
        "[  812.000001 <    0.000123*>] host kernel: ",
        "[  812.000001                ] host kernel: ",
        "[  812.000001] kernel: ",
        "<3>Nov 20 22:58:01 host kernel: ",
        "<3>1 2026-11-20T22:58:01.123456+00:00 host kernel - - - ",
        "1 2026-11-20T22:58:01Z host kernel - - -  [12345.678901] ",
        "<3>1 2026-11-20T22:58:01Z host kernel - - - \u{feff}",
        "<3>1 2026-11-20T22:58:01Z host kernel - - [meta sequenceId=\"7\"] ",
        "<3>1 2026-11-20T22:58:01Z host kernel 0 - [a b=\"\\\"] \\\\\"][c d=\"]\"] ",
        "<3>1 - host kernel - - - ",
        "\0\0\0Nov 20 22:58:01 host kernel: ",
        "\0[  812.000001] ",
        "\u{feff}Nov 20 22:58:01 host kernel: ",
        "Nov 20 22:58:01 (none) kernel: ",
        "Nov 20 22:58:01 fe80::1%eth0 kernel: ",
        "Fri, 20 Nov 2026 22:58:01 +0100 host kernel: ",
        "11-р сар 20 22:58:01 host kernel: ",
        "ཟླ་11 20 22:58:01 host kernel: ",
        "Nov 20 22:58:01 [12345.678901] ",
        "2026-11-20T22:58:01 [    5.123456] ",
        "Fri Nov 20 22:58:01 CET 2026 [  812.000001] [  T123] ",
        "[  812.000001] 2026-11-20T22:58:01,123456+01:00 ",
        "2026-11-20T22:58:01.001234+01:00 host kernel - - - ",
        "2026-11-20T22:58:01.001234+01:00 host kernel - - [a b=\"c\"] ",
        "2026-11-20T22:58:01.12345 kern.err: [  812.000001] ",
        "2026-11-20_22:58:01.12345 kern.err: ",
        "3,416,1758426,-;",
        "4,416,1758426,-,caller=T12;",
    ] {
        for after in ["", "\r", " \n"] {
            assert_eq!(
                text(&format!("{before}{XFS}{after}")),
                Some(XFS),
                "{before}"
            );
        }
    }
    assert_eq!(
        text("Nov 20 22:58:01 host kernel: [drm] initialised"),
        Some("[drm] initialised")
    );
    assert_eq!(text("Nov 20 22:58:01 host kernel:"), Some(""));
}

#[test]
fn what_the_kernel_did_not_write() {
    for before in [
        "",
        " ",
        "kernel: ",
        "host kernel: ",
        "<11>",
        "<>",
        "<3",
        "<3> ",
        "<30>[   1.5] ",
        "[drm] ",
        "[Fri Nov 20 22:58:01 20x6] ",
        "[Fri Nov 20 22:58:01 2026 host] ",
        "[1.5 host] ",
        "[kern.err] ",
        "kern.err ",
        "daemon:info  : [    1.5] ",
        "Nov 20 22:58:01 ",
        "Nov 20 22:58:01 host ",
        "Nov 20 22:58:01 host qemu-system-x86_64[812]: ",
        "Nov 20 22:58:01 host qemu: [    1.5] ",
        "Nov 20 22:58:01 host virtlogd[9]: Nov 20 22:58:01 guest kernel: [    1.5] ",
        "Nov 20 22:58:01 host kernel[1]: ",
        "Nov 20 22:58:01 host kernel-tool: ",
        "Nov 20 22:58:01 host kernel text: ",
        "Nov 20 22:58:01 host  kernel: ",
        "Nov 20 22:58:01 host guest kernel: ",
        "Nov 20 22:58:01 HOST guest kernel: ",
        "Nov 20 22:58:01 qemu: kernel: ",
        "Nov 20 22:58:01 user.err kernel: ",
        "Nov 20 22:58:01 host user.err kernel: ",
        "Nov 20 22:58:01 host user err kernel: ",
        "Nov 20 22:58:01 host local7.debug kernel: ",
        "Nov 20 22:58:01 host <191> kernel: ",
        "Nov 20 22:58:01 host user.err<11> kernel: ",
        "Nov 20 22:58:01 host kern.err: ",
        "Nov 20 22:58:01 host kern.err qemu: kernel: ",
        "Nov 20 22:58:01 host kern.err: kernel: ",
        "Nov 20 22:58:01 host err: kernel: ",
        "Nov 20 22:58:01 [qemu] kernel: ",
        "Nov 20 22:58:01 host [kernel] ",
        "                              Nov 20 22:58:01 host kernel: ",
        "  Nov 20 22:58:01 host kernel: ",
        " Nov 20 22:58:01 host kernel: ",
        " [    1.5] ",
        "x Nov 20 22:58:01: host kernel: ",
        "host[9]: 20 22:58:01 host kernel: ",
        "20 22:58:01 host kernel: ",
        "Nov 20 25:58:01 host kernel: ",
        "Nov 32 22:58:01 host kernel: ",
        "2026-13-20 22:58:01 host kernel: ",
        "<3>Nov 20 22:58:01 host qemu: kernel: ",
        "<11>Nov 20 22:58:01 host kernel: ",
        "user.err Nov 20 22:58:01 host kernel: ",
        "2026-11-20T22:58:01.123456+00:00 host qemu: host kernel: [1.5] ",
        "2026-11-20T22:58:01.1x host kernel: ",
        "2026-11-20T22:58:01,123456 host qemu: ",
        "[  812.000001] host qemu[9]: ",
        "1 2026-11-20T22:58:01Z host qemu - - - kernel: ",
        "1 2026-11-20T22:58:01Z host kernel 9 - - ",
        "1 2026-11-20T22:58:01Z host qemu - - [a b=\"c\"] kernel: ",
        "1 2026-11-20T22:58:01Z host qemu - - [a b=\"] host kernel - - - ",
        "1 2026-11-20T22:58:01Z host kernel - - [a b=\"c\"]x ",
        "<11>1 2026-11-20T22:58:01Z host kernel - - - ",
        "<3>1 - host qemu - - - ",
        "Nov 20 22:58:01 [T1] ",
        "Nov 20 22:58:01 host [12345.678901] ",
        "Nov 20 22:58:01 host kernel - - - ",
        "2026-11-20T22:58:01.001234+01:00 host kernel 9 - - ",
        "2026-11-20T22:58:01.001234+01:00 host qemu - - - kernel: ",
        "2026-11-20T22:58:01.001234+01:00 kern.err: ",
        "Fri 2026-11-20 22:58:01 CET kern.err: ",
        "2026-11-20T22:58:01.12345 user.err: ",
        "2026-11-20T22:58:01.12345 user.notice: Nov 20 22:58:01 kernel: ",
        "11,416,1758426,-;",
        "30,416,1758426,-;qemu: ",
        "3,416,1758426,-",
        "{\"_TRANSPORT\":\"kernel\",\"MESSAGE\":\"",
    ] {
        assert_eq!(text(&format!("{before}{XFS}")), None, "{before}");
    }
    // A text of dmesg stays whole: whoever it quotes, no rule that is anchored matches it.
    for before in [
        "[Fri Nov 20 22:58:01 2026] kernel: ",
        "[  812.000001] qemu[9]: ",
    ] {
        let line = format!("{before}{XFS}");
        let text = text(&line);
        assert!(
            text.is_some_and(|text| !text.starts_with("XFS")),
            "{before}"
        );
    }
}

#[test]
fn repetitions() {
    let times = |line: &str| match read(line.as_bytes()) {
        Reading::Kernel { text, times, .. } => {
            (times, std::str::from_utf8(text).unwrap().to_owned())
        }
        Reading::Repeated { times, .. } => (times, "repeated".to_owned()),
        other => (0, format!("{other:?}")),
    };
    let is = |times: u32, text: &str| (times, text.to_owned());
    let at = "Nov 20 22:58:01 host";
    assert_eq!(
        times(&format!(
            "{at} kernel: message repeated 12 times: [ [1.5] XFS: [7] a]"
        )),
        is(12, "XFS: [7] a")
    );
    for (line, number) in [
        (format!("{at} last message repeated 5 times"), 5),
        (format!("{at} last message repeated 1 time"), 1),
        (format!("{at} last message buffered 5 times"), 5),
        (format!("{at} kernel: last message repeated 5 times"), 5),
        (
            format!(
                "{at} kernel: Last message 'XFS: a' repeated 5 times, suppressed by syslog-ng on host"
            ),
            5,
        ),
        (
            "                - Last output repeated 5 times -".to_owned(),
            5,
        ),
        (
            "                - Last output repeated twice -".to_owned(),
            1,
        ),
    ] {
        assert_eq!(times(&line), is(number, "repeated"), "{line}");
    }
    for line in [
        format!("{at} qemu: last message repeated 5 times"),
        format!("{at} qemu: message repeated 5 times: [ {XFS}]"),
        format!("{at} qemu[9]: Last message 'a' repeated 5 times, suppressed by syslog-ng on host"),
        format!("{at} last message repeated 99999999999 times"),
        format!("{at} last message repeated times"),
        "last message repeated 5 times".to_owned(),
    ] {
        assert_eq!(times(&line).0, 0, "{line}");
    }
    // A number that is none is a part of the text.
    let line = format!("{at} kernel: message repeated 99999999999 times: [ {XFS}]");
    assert!(text(&line).unwrap().starts_with("message repeated"));
}

#[test]
fn a_form_is_known_if_another_program_stands_in_its_place() {
    for (line, reading) in [
        ("Nov 20 22:58:01 host qemu[9]: a text", Reading::Other),
        ("Nov 20 22:58:01 [qemu] a text", Reading::Other),
        ("<30>Nov 20 22:58:01 host qemu: a text", Reading::Other),
        (
            "1 2026-11-20T22:58:01Z host qemu 9 - - a text",
            Reading::Other,
        ),
        ("Nov 20 22:58:01 host -- MARK --", Reading::Other),
        ("Nov 20 22:58:01 -- MARK --", Reading::Other),
        (
            "2026-11-20T22:58:01.001234+01:00 host qemu 9 - - a text",
            Reading::Other,
        ),
        ("30,416,1758426,-;qemu[9]: a text", Reading::Other),
        ("", Reading::Unknown),
        ("a text", Reading::Unknown),
        ("2026-11-20 | host | kernel | a text", Reading::Unknown),
        (
            "2026-11-20 22:58:01 | host | kernel | a text",
            Reading::Unknown,
        ),
        ("{\"MESSAGE\":\"a text\"}", Reading::Unknown),
        ("@400000006a1f4b2c0f3d2a1c kernel: a text", Reading::Unknown),
    ] {
        assert_eq!(read(line.as_bytes()), reading, "{line}");
    }
}

#[test]
fn colours_are_removed() {
    let (on, off) = ("\x1b[0;1;38;5;185m", "\x1b[0m");
    let text = XFS.strip_prefix("XFS: ").unwrap();
    for line in [
        format!("\x1b[32m[  812.000001] {off}\x1b[33mXFS: {off}\x1b[31m{text}{off}"),
        format!("Nov 20 22:58:01 host kernel: {on}{XFS}{off}"),
    ] {
        let plain = without_colours(line.as_bytes());
        assert_eq!(kernel_text(&plain), Some(XFS.as_bytes()), "{line}");
    }
    for (line, plain) in [
        ("", ""),
        ("a", "a"),
        ("a\x1b", "a"),
        ("a\x1bb", "ab"),
        ("a\x1b[", "a["),
        ("a\x1b[12", "a[12"),
        ("a\x1b[Kb\x1b[m", "ab"),
    ] {
        assert_eq!(*without_colours(line.as_bytes()), *plain.as_bytes());
    }
}

#[test]
fn the_host_of_a_line() {
    for (line, wanted) in [
        ("Nov 20 22:58:01 kvm7 kernel: a", Some("kvm7")),
        ("<3>Nov 20 22:58:01 kvm7 kernel: a", Some("kvm7")),
        ("<3>1 2026-11-20T22:58:01Z kvm7 qemu - - - a", Some("kvm7")),
        ("Nov 20 22:58:01 kern.err kvm7 kernel: a", Some("kvm7")),
        (
            "Nov 20 22:58:01 s_src@kvm7/relay qemu[9]: a",
            Some("s_src@kvm7/relay"),
        ),
        ("Nov 20 22:58:01 kernel: a", None),
        ("Nov 20 22:58:01 kern.err kernel: a", None),
        ("Nov 20 22:58:01 qemu[9]: a", None),
        ("Nov 20 22:58:01 [kernel] a", None),
        ("[  812.000001] a text", None),
        ("kern  :err   : [  812.000001] a text", None),
        ("a text", None),
        ("", None),
    ] {
        assert_eq!(host(line.as_bytes()), wanted.map(str::as_bytes), "{line}");
    }
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(
        words in vec(prop::sample::select(WORDS), 0..12),
        bytes: Vec<u8>,
    ) {
        let _ = read(&[words.concat().as_bytes(), &bytes].concat());
        let _ = read(&bytes);
        let _ = host(&bytes);
        let _ = without_colours(&bytes);
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
    "[<",
    ">]",
    " ",
    "Nov 20 22:58:01 ",
    "févr. ",
    "2월 ",
    "22:58:01",
    "2026-11-20T22:58:01",
    "Fri Nov 20 22:58:01 2026",
    "Z ",
    ",123456+01:00 ",
    "host ",
    "kern.err ",
    "kern  :err   : ",
    "kernel:",
    "kernel ",
    "kernel[-] err: ",
    "[kernel] ",
    "- ",
    "[a b=\"",
    "\\",
    "\"] ",
    "\u{feff}",
    "message repeated ",
    "last message repeated 5 times",
    "times: [",
    "' repeated ",
    "\0",
    "\x1b[31m",
    "kern.err: ",
    "3,416,1758426,-;",
];
