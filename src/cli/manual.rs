//! Generates the manual pages from existing texts: the definition of the command line, the
//! annotated configuration file, the tables of metrics and alerts. `packaging/man` adds the rest.

use std::fmt::Write as _;
use std::io;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::args::Arguments;
use crate::doctor::report;

macro_rules! sections {
    ($($page:literal)*) => {
        [$(($page, include_str!(concat!("../../packaging/man/", $page, ".md")))),*]
    };
}

/// Additional sections in Markdown, by page name.
const SECTIONS: [(&str, &str); 13] = sections!(
    "fragwatch" "fragwatch-check" "fragwatch-defrag" "fragwatch-doctor" "fragwatch-drill"
    "fragwatch-history" "fragwatch-plan" "fragwatch-protect" "fragwatch-report" "fragwatch-run" "fragwatch-scan"
    "fragwatch-space" "fragwatch-status"
);
const CONFIGURATION: &str = include_str!("../../config/fragwatch.toml");
const CONFIGURATION_HEAD: &str = include_str!("../../packaging/man/fragwatch.toml.md");
const METRICS: &str = include_str!("../../packaging/prometheus/README.md");
const METRICS_HEAD: &str = include_str!("../../packaging/man/fragwatch-metrics.md");
const FLEET: &str = include_str!("../../packaging/man/fragwatch-fleet.md");
const SEE_ALSO: &str = "\
.SH SEE ALSO
.BR fragwatch (1),
.BR fragwatch.toml (5),
.BR fragwatch\\-fleet (7),
.BR fragwatch\\-metrics (7)
";
/// Release date of this version, as in `packaging/deb/changelog`.
const DATE: &str = "2026-11-30";
const SOURCE: &str = concat!("fragwatch ", env!("CARGO_PKG_VERSION"));

/// All pages: file name and text. Writing to memory does not fail.
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
    pages.push(plain_page("fragwatch-fleet", "7", &markdown(FLEET)));
    Ok(pages)
}

fn command_page(command: &clap::Command) -> io::Result<(String, String)> {
    let page = Man::new(command.clone());
    let page = page.date(DATE).source(SOURCE).manual("fragwatch");
    let name = page.get_filename();
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA", ".SH NOTES");
    let stem = name.trim_end_matches(".1");
    let sections = SECTIONS.iter().find(|(name, _)| *name == stem);
    let mut sections = sections.map_or_else(String::new, |(_, text)| markdown(text));
    if stem == "fragwatch-doctor" {
        sections.push_str(&markdown(&report::manual()));
    }
    let (before, version) = text.split_once(".SH VERSION").unwrap_or((&text, ""));
    let page = format!("{before}{sections}{SEE_ALSO}.SH VERSION{version}");
    Ok((name, page))
}

fn plain_page(name: &str, section: &str, text: &str) -> (String, String) {
    let title = escaped(name);
    let page = format!(".TH {title} {section} {DATE} \"{SOURCE}\" fragwatch\n{text}{SEE_ALSO}");
    (format!("{name}.{section}"), page)
}

/// Converts the Markdown used in these texts: headings, paragraphs, lists, tables, fenced blocks,
/// code. A table row becomes an item: its first cell, then the others as text.
fn markdown(text: &str) -> String {
    let mut page = String::new();
    let mut lines = text.lines();
    let mut heads: Vec<&str> = Vec::new();
    // No paragraph break after a heading.
    let (mut after_heading, mut gap) = (true, false);
    while let Some(line) = lines.next() {
        if line.is_empty() {
            heads.clear();
            gap = !after_heading;
            continue;
        }
        let heading = line.starts_with('#');
        if gap && !heading && !line.starts_with(['-', '|']) {
            page.push_str(".PP\n");
        }
        (after_heading, gap) = (heading, false);
        if let Some(title) = line.strip_prefix("# ") {
            let _ = writeln!(page, ".SH {}", escaped(&title.to_uppercase()));
        } else if let Some(title) = line.strip_prefix("## ") {
            let _ = writeln!(page, ".SS {}", escaped(title));
        } else if line.starts_with("```") {
            let block = lines.by_ref().take_while(|line| !line.starts_with("```"));
            page.push_str(&example(block));
        } else if let Some(row) = line.strip_prefix("| ") {
            let cells = row.trim_end_matches('|').split(" | ").map(str::trim);
            let cells: Vec<_> = cells.collect();
            if heads.is_empty() {
                heads = cells;
            } else {
                let text = row_text(&heads, &cells);
                let _ = writeln!(page, ".TP\n{}\n{}", inline(cells[0]), inline(&text));
            }
        } else if let Some(item) = line.strip_prefix("- ") {
            let _ = writeln!(page, ".IP \\(bu 2\n{}", inline(item));
        } else if !line.starts_with("|-") {
            let _ = writeln!(page, "{}", inline(line.trim_start()));
        }
    }
    page
}

/// The cells after the first; from the third on prefixed with their column heading.
fn row_text(heads: &[&str], cells: &[&str]) -> String {
    let named = heads.iter().zip(cells).skip(2);
    let others = named.map(|(head, cell)| format!(". {head}: {cell}"));
    cells
        .get(1)
        .map_or_else(String::new, |cell| (*cell).to_owned())
        + &others.collect::<String>()
}

/// The keys of an annotated configuration file: comment blocks, each above what it describes.
fn keys(text: &str) -> String {
    let mut page = String::from(".SH KEYS\n");
    // The first block describes the file as a whole.
    for block in text.split("\n\n").skip(1) {
        let (comments, rest): (Vec<_>, Vec<_>) =
            block.lines().partition(|line| line.starts_with('#'));
        let comments = comments
            .iter()
            .map(|line| line.get(2..).unwrap_or_default());
        let comments: Vec<_> = comments.collect();
        let is_list = |line: &&str| line.starts_with("[[");
        let list = comments.iter().position(is_list).unwrap_or(comments.len());
        let (about, list) = comments.split_at(list);
        let section = rest.first().filter(|line| line.starts_with('['));
        if let Some(name) = list.first().or(section) {
            let _ = writeln!(page, ".SS {}", escaped(name));
        }
        for (number, key) in rest.iter().enumerate() {
            let tag = if number == 0 { "TP" } else { "TQ" };
            if let Some((name, value)) = key.split_once('=') {
                let (name, value) = (escaped(name.trim()), escaped(value.trim()));
                let _ = writeln!(page, ".{tag}\n\\fB{name}\\fR = {value}");
            }
        }
        page.push_str(&comment(about));
        if !list.is_empty() {
            page.push_str(&example(list.iter().copied()));
        }
    }
    page
}

/// The text of a comment: paragraphs, and indented items, `  name   what it means`.
fn comment(lines: &[&str]) -> String {
    let mut page = String::new();
    let mut in_items = false;
    // The extra line ends open items.
    for line in lines.iter().copied().chain([" "]) {
        let item = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '));
        let before = in_items;
        in_items = item.is_some() || (before && line.starts_with("  "));
        if in_items != before {
            page.push_str(if in_items { ".RS\n" } else { ".RE\n" });
        }
        if let Some((name, text)) = item.and_then(|item| item.split_once("  ")) {
            let (name, text) = (escaped(name), inline(text.trim()));
            let _ = writeln!(page, ".TP\n\\fB{name}\\fR\n{text}");
        } else if line.is_empty() {
            page.push_str(".sp\n");
        } else if line != " " {
            let _ = writeln!(page, "{}", inline(line.trim()));
        }
    }
    page
}

fn example<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<_> = lines.map(escaped).collect();
    format!(".RS 4\n.nf\n{}\n.fi\n.RE\n", lines.join("\n"))
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

/// Escapes requests at the beginning, escapes, and characters that troff prints differently.
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
             .SS [[klog.rule]]\nRules.\n.sp\n.RS 4\n.nf\n[[klog.rule]]\nname = \\(dqa\\(dq\n.fi\n.RE\n"
        );
    }
}
