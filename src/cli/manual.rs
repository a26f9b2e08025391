//! Manual pages, each made from the one text that exists already: the description of the command
//! line, the annotated configuration file, the tables of metrics and alerts. `packaging/man` adds
//! the sections that none of these has.

use std::fmt::Write as _;
use std::io;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::args::Arguments;

/// Sections beside those of the command line, in Markdown, by the name of the page.
const SECTIONS: [(&str, &str); 9] = [
    (
        "fragwatch",
        include_str!("../../packaging/man/fragwatch.md"),
    ),
    (
        "fragwatch-check",
        include_str!("../../packaging/man/fragwatch-check.md"),
    ),
    (
        "fragwatch-defrag",
        include_str!("../../packaging/man/fragwatch-defrag.md"),
    ),
    (
        "fragwatch-drill",
        include_str!("../../packaging/man/fragwatch-drill.md"),
    ),
    (
        "fragwatch-history",
        include_str!("../../packaging/man/fragwatch-history.md"),
    ),
    (
        "fragwatch-plan",
        include_str!("../../packaging/man/fragwatch-plan.md"),
    ),
    (
        "fragwatch-run",
        include_str!("../../packaging/man/fragwatch-run.md"),
    ),
    (
        "fragwatch-scan",
        include_str!("../../packaging/man/fragwatch-scan.md"),
    ),
    (
        "fragwatch-status",
        include_str!("../../packaging/man/fragwatch-status.md"),
    ),
];
const CONFIGURATION: &str = include_str!("../../config/fragwatch.toml");
const CONFIGURATION_HEAD: &str = include_str!("../../packaging/man/fragwatch.toml.md");
const METRICS: &str = include_str!("../../packaging/prometheus/README.md");
const METRICS_HEAD: &str = include_str!("../../packaging/man/fragwatch-metrics.md");
const SOURCE: &str = concat!("fragwatch ", env!("CARGO_PKG_VERSION"));

/// All pages: the name of the file, and its text.
///
/// # Errors
/// None that a page in memory could have; clap writes it as it would write a file.
pub(super) fn pages() -> io::Result<Vec<(String, String)>> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let mut pages = subcommands
        .chain([&command])
        .map(command_page)
        .collect::<Result<Vec<_>, _>>()?;
    let configuration = format!("{}{}", markdown(CONFIGURATION_HEAD), keys(CONFIGURATION));
    pages.push(plain_page("fragwatch.toml", "5", &configuration));
    let metrics = format!("{}{}", markdown(METRICS_HEAD), markdown(METRICS));
    pages.push(plain_page("fragwatch-metrics", "7", &metrics));
    Ok(pages)
}

fn command_page(command: &clap::Command) -> io::Result<(String, String)> {
    let page = Man::new(command.clone()).source(SOURCE).manual("fragwatch");
    let name = page.get_filename();
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA", ".SH NOTES");
    let stem = name.trim_end_matches(".1");
    let sections = SECTIONS.iter().find(|(name, _)| *name == stem);
    let sections = sections.map_or_else(String::new, |(_, text)| markdown(text));
    let (before, version) = text.split_once(".SH VERSION").unwrap_or((&text, ""));
    let page = format!("{before}{sections}{}.SH VERSION{version}", see_also(stem));
    Ok((name, page))
}

fn plain_page(name: &str, section: &str, text: &str) -> (String, String) {
    let title = format!(
        ".TH {} {section} \"\" \"{SOURCE}\" \"fragwatch\"\n",
        escaped(name)
    );
    (
        format!("{name}.{section}"),
        format!("{title}{text}{}", see_also(name)),
    )
}

/// The pages that a reader of this one may want.
fn see_also(name: &str) -> String {
    let pages = [
        ("fragwatch", 1),
        ("fragwatch.toml", 5),
        ("fragwatch-metrics", 7),
    ];
    let others = pages.iter().filter(|(other, _)| *other != name);
    let names: Vec<_> = others
        .map(|(name, section)| format!(".BR {} ({section})", escaped(name)))
        .collect();
    format!(".SH SEE ALSO\n{}\n", names.join(" ,\n"))
}

/// Markdown as far as our own texts use it: headings, paragraphs, lists, tables, fenced blocks, code.
/// A row of a table becomes an item: its first cell, and the others as text.
fn markdown(text: &str) -> String {
    let mut page = String::new();
    let mut lines = text.lines();
    let mut heads: Vec<&str> = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("# ") {
            let _ = writeln!(page, ".SH {}", escaped(&title.to_uppercase()));
        } else if let Some(title) = line.strip_prefix("## ") {
            let _ = writeln!(page, ".SS {}", inline(title));
        } else if line.starts_with("```") {
            let block: Vec<_> = lines
                .by_ref()
                .take_while(|line| !line.starts_with("```"))
                .collect();
            page.push_str(&example(&block));
        } else if let Some(row) = line.strip_prefix("| ") {
            let cells: Vec<_> = row
                .trim_end_matches('|')
                .split(" | ")
                .map(str::trim)
                .collect();
            if heads.is_empty() {
                heads = cells;
            } else {
                let _ = writeln!(
                    page,
                    ".TP\n{}\n{}",
                    inline(cells[0]),
                    inline(&row_text(&heads, &cells))
                );
            }
        } else if let Some(item) = line.strip_prefix("- ") {
            let _ = writeln!(page, ".IP \\(bu 2\n{}", inline(item));
        } else if line.is_empty() {
            heads.clear();
            page.push_str(".PP\n");
        } else if !line.starts_with("|-") {
            let _ = writeln!(page, "{}", inline(line.trim_start()));
        }
    }
    tidy(&page)
}

/// The cells after the first; those after the second behind the names of their columns.
fn row_text(heads: &[&str], cells: &[&str]) -> String {
    let mut text = String::new();
    for (head, cell) in heads
        .iter()
        .zip(cells)
        .skip(1)
        .filter(|(_, cell)| !cell.is_empty())
    {
        if !text.is_empty() {
            let _ = write!(text, ". {head}: ");
        }
        text.push_str(cell);
    }
    text
}

/// The keys of an annotated configuration file: blocks of comments, each with what it describes below.
fn keys(text: &str) -> String {
    let mut page = String::from(".SH KEYS\n");
    // The first block describes the file as a whole.
    for block in text.split("\n\n").skip(1) {
        let (comments, rest): (Vec<_>, Vec<_>) =
            block.lines().partition(|line| line.starts_with('#'));
        let comments: Vec<_> = comments
            .iter()
            .map(|line| line.get(2..).unwrap_or_default())
            .collect();
        let example_at = comments.iter().position(|line| line.starts_with("[["));
        let (about, commented) = comments.split_at(example_at.unwrap_or(comments.len()));
        if let Some(name) = commented
            .first()
            .or(rest.first().filter(|line| line.starts_with('[')))
        {
            let _ = writeln!(page, ".SS {}", escaped(name));
        } else {
            for (number, key) in rest.iter().enumerate() {
                let macro_name = if number == 0 { "TP" } else { "TQ" };
                let (name, value) = key.split_once('=').unwrap_or((key, ""));
                let _ = writeln!(
                    page,
                    ".{macro_name}\n\\fB{}\\fR = {}",
                    escaped(name.trim()),
                    escaped(value.trim())
                );
            }
        }
        page.push_str(&comment(about));
        if !commented.is_empty() {
            page.push_str(&example(commented));
        }
    }
    tidy(&page)
}

/// Text of a comment: paragraphs, and indented items, `  name   what it means`.
fn comment(lines: &[&str]) -> String {
    let mut page = String::new();
    let mut in_items = false;
    for line in lines {
        let item = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '));
        let before = in_items;
        in_items = item.is_some() || (before && line.starts_with(' '));
        if in_items != before {
            page.push_str(if in_items { ".RS\n" } else { ".RE\n" });
        }
        match item.map(|item| item.split_once("  ").unwrap_or((item, ""))) {
            Some((name, text)) => {
                let _ = writeln!(
                    page,
                    ".TP\n\\fB{}\\fR\n{}",
                    escaped(name),
                    inline(text.trim())
                );
            }
            None if line.is_empty() => page.push_str(".sp\n"),
            None => {
                let _ = writeln!(page, "{}", inline(line.trim()));
            }
        }
    }
    if in_items {
        page.push_str(".RE\n");
    }
    page
}

fn example(lines: &[&str]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| escaped(line)).collect();
    format!(".PP\n.RS 4\n.nf\n{}\n.fi\n.RE\n", lines.join("\n"))
}

/// Text with `code` in bold.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (number, part) in text.split('`').enumerate() {
        let escaped = escaped(part);
        if number % 2 == 1 {
            let _ = write!(out, "\\fB{escaped}\\fR");
        } else {
            out.push_str(&escaped);
        }
    }
    out
}

/// Text in which troff finds nothing of its own: no request at the beginning of a line, no escape, no
/// character that it would print as another one.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    if text.starts_with(['.', '\'']) {
        out.push_str("\\&");
    }
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            '"' => out.push_str("\\(dq"),
            c => out.push(c),
        }
    }
    out
}

/// Without the breaks of paragraphs that mean nothing: after a heading, before a heading or a break.
fn tidy(page: &str) -> String {
    let lines: Vec<_> = page.lines().collect();
    let mut out = String::with_capacity(page.len());
    for (at, line) in lines.iter().enumerate() {
        let before = at.checked_sub(1).map_or(".SH", |before| lines[before]);
        let after = lines.get(at + 1).copied().unwrap_or(".SH");
        let heading = |line: &str| line.starts_with(".SH") || line.starts_with(".SS");
        let breaks =
            |line: &str| heading(line) || line == ".PP" || line.starts_with(".IP") || line == ".TP";
        if *line != ".PP" || !(heading(before) || breaks(after)) {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_macros() {
        let text = "# Files\n\nWhere `a-b` lies.\n\n- one\n- two\n\n| key | means | unit |\n|---|---|---|\n| `x` | how far | m |\n\n```sh\n.x 'y'\n```\n";
        assert_eq!(
            markdown(text),
            ".SH FILES\nWhere \\fBa\\-b\\fR lies.\n.IP \\(bu 2\none\n.IP \\(bu 2\ntwo\n.TP\n\\fBx\\fR\nhow far. unit: m\n\
             .PP\n.RS 4\n.nf\n\\&.x \\(aqy\\(aq\n.fi\n.RE\n"
        );
    }

    #[test]
    fn an_annotated_file_becomes_a_list_of_keys() {
        let text = "# About the file.\n\n# What is watched.\n[images]\n\n# Which files.\n#\n#   all   every one,\n#         hidden ones too\n# At least one.\npaths = [\"/srv\"]\nmore = 1\n\n# Rules.\n#\n# [[klog.rule]]\n# name = \"a\"\n";
        assert_eq!(
            keys(text),
            ".SH KEYS\n.SS [images]\nWhat is watched.\n.TP\n\\fBpaths\\fR = [\\(dq/srv\\(dq]\n.TQ\n\\fBmore\\fR = 1\n\
             Which files.\n.sp\n.RS\n.TP\n\\fBall\\fR\nevery one,\nhidden ones too\n.RE\nAt least one.\n\
             .SS [[klog.rule]]\nRules.\n.sp\n.PP\n.RS 4\n.nf\n[[klog.rule]]\nname = \\(dqa\\(dq\n.fi\n.RE\n"
        );
    }
}
