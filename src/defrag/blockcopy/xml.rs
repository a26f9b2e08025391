//! The definition of one disk, with another file in it. All else stays as libvirt has written it. Pure.

use std::path::Path;

use roxmltree::Document;

/// The element of the disk `target` in the XML of a domain, with `file` as its source. `None` if there
/// is no such disk, or its source is no file.
pub(super) fn with_source(xml: &str, target: &str, file: &Path) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let is_it = |disk: &roxmltree::Node<'_, '_>| {
        let mut children = disk.children();
        disk.has_tag_name("disk")
            && children.any(|it| it.has_tag_name("target") && it.attribute("dev") == Some(target))
    };
    let devices = document.root_element().children();
    let devices = devices.filter(|it| it.has_tag_name("devices"));
    let disk = devices.flat_map(|it| it.children()).find(is_it)?;
    let source = disk.children().find(|it| it.has_tag_name("source"))?;
    let value = source.attribute_node("file")?.range_value();
    let (all, file) = (disk.range(), escaped(file.to_str()?));
    Some(format!(
        "{}{file}{}",
        &xml[all.start..value.start],
        &xml[value.end..all.end]
    ))
}

fn escaped(text: &str) -> String {
    let replaced = [
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("'", "&apos;"),
        ("\"", "&quot;"),
    ];
    let replace = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    replaced.into_iter().fold(text.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_is_another() {
        let disk = "<disk type='file'>\n <source file='/a &amp; b'/><x/><target dev='vdb'/></disk>";
        let other = "<disk><source file='/a'/><target dev='vda'/></disk>";
        let xml = format!("<domain><devices>{other}{disk}</devices></domain>");
        let file = Path::new("/it's <new> & \"c\"");
        let new = with_source(&xml, "vdb", file).unwrap();
        let value = "/it&apos;s &lt;new> &amp; &quot;c&quot;";
        assert_eq!(new, disk.replace("/a &amp; b", value));
        let parsed = Document::parse(&new).unwrap();
        let source = parsed.descendants().find(|it| it.has_tag_name("source"));
        assert_eq!(source.unwrap().attribute("file").map(Path::new), Some(file));
        assert_eq!(with_source(&xml, "vdc", file), None);
        assert_eq!(with_source("<domain>", "vda", file), None);
    }
}
