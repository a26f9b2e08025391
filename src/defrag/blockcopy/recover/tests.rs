use std::path::PathBuf;

use super::super::tests::copied;
use super::*;

/// What is a domain's only way to the copy.
#[test]
fn every_place_in_a_definition_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut note = copied(dir.path());
    note.former = PathBuf::from("/former");
    let (image, copy) = (note.image.display(), note.copy.display());
    let of = |source: &str, more: &str, target: &str| {
        let disk = format!("<disk><source file='{source}'/>{more}<target dev='{target}'/></disk>");
        let xml = format!("<domain><name>a</name><uuid>b</uuid><devices>{disk}</devices></domain>");
        named(&Domain::parse(&xml).unwrap(), &note)
    };
    let (image, copy) = (image.to_string(), copy.to_string());
    let below = format!("<backingStore type='file'><source file='{copy}'/></backingStore>");
    let mirror = format!("<mirror><source file='{copy}'/></mirror>");
    assert_eq!(of(&image, "", "vda"), Named::Image);
    assert_eq!(of(&copy, "", "vda"), Named::Copy);
    assert_eq!(of(&image, &mirror, "vda"), Named::Image);
    assert_eq!(of("/overlay", &below, "vda"), Named::Elsewhere);
    assert_eq!(of(&copy, "", "vdb"), Named::Elsewhere);
    assert_eq!(of("/overlay", "", "vda"), Named::Neither);
    assert_eq!(of("/former", "", "vda"), Named::Former);
    assert_eq!(of("/former", &below, "vda"), Named::Elsewhere);
}
