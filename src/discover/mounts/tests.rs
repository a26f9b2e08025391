//! Tests of [`mounts`](super).

use super::*;
use proptest::prelude::*;

fn table(text: &str) -> MountTable {
    MountTable::new(sys::mounts::parse(text.as_bytes()))
}

fn device_of(table: &MountTable, path: &str) -> String {
    let mount = table.of(Path::new(path)).unwrap();
    format!("{}:{}", mount.device.major, mount.device.minor)
}

/// Mounted beneath another one (mount --beneath).
#[test]
fn case_c06() {
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/C06/");
    let table = table(&std::fs::read_to_string(format!("{case}mountinfo")).unwrap());
    let expected = std::fs::read_to_string(format!("{case}expected.tsv")).unwrap();
    for line in expected.lines().filter(|line| !line.starts_with('#')) {
        let (path, wanted) = line.split_once('\t').unwrap();
        let wanted = wanted.split('\t').next().unwrap();
        assert_eq!(device_of(&table, path), wanted, "{path}");
    }
    assert_eq!(table.names_in(Path::new("/")), ["data"]);
    let hidden = DeviceNumber { major: 7, minor: 4 };
    assert_eq!(table.principal(hidden), None);
}

#[test]
fn what_hidden_mounts_carry_is_hidden_too() {
    let table = table(
        "20 1 8:1 / / rw - ext4 x rw\n\
         21 20 7:1 / /srv rw - xfs x rw\n\
         22 21 7:2 / /srv/vm rw - xfs x rw\n\
         23 21 7:3 / /srv rw - xfs x rw\n\
         24 20 7:1 / /again rw - xfs x rw\n",
    );
    for (path, expected) in [
        ("/srv", "7:3"),
        ("/srv/vm/a", "7:3"),
        ("/again/vm/a", "7:1"),
        ("/srvother", "8:1"),
    ] {
        assert_eq!(device_of(&table, path), expected, "{path}");
    }
    assert!(table.names_in(Path::new("/srv")).is_empty());
    let file = |minor, path: &str| (DeviceNumber { major: 7, minor }, PathBuf::from(path));
    let path = |place| table.path_to(&place);
    assert_eq!(path(file(1, "/a")), Some(PathBuf::from("/again/a")));
    assert_eq!(path(file(2, "/a")), None);
}

#[test]
fn in_a_root_directory_that_is_no_mount_what_is_mounted_below_counts() {
    let table = table("31 20 7:1 / /img rw - xfs x rw\n32 31 7:2 / /img/a rw - xfs x rw\n");
    assert_eq!(device_of(&table, "/img/b"), "7:1");
    assert_eq!(device_of(&table, "/img/a/b"), "7:2");
    assert_eq!(table.of(Path::new("/etc")), None);
}

#[test]
fn a_file_lies_at_one_place_through_all_mounts() {
    let table = table(
        "20 20 8:1 / / rw - ext4 x rw\n\
         21 20 7:1 / /srv rw - xfs x rw\n\
         22 20 7:1 /vm/one.raw /disk rw - xfs x rw\n\
         23 20 7:1 /vm /vm rw - xfs x rw\n",
    );
    let place = table.place(Path::new("/srv/vm/one.raw"));
    assert!(place.is_some());
    for path in ["/disk", "/vm/one.raw"] {
        assert_eq!(table.place(Path::new(path)), place, "{path}");
    }
    let path = table.path_to(&place.unwrap()).unwrap();
    assert_eq!(path.as_os_str(), "/srv/vm/one.raw");
    assert_eq!(
        table.place(Path::new("/disk")).unwrap().1.as_os_str(),
        "/vm/one.raw"
    );
}

/// Mounts as the kernel makes them: each on what is visible at a directory, or beneath that.
#[derive(Default)]
struct Kernel {
    /// ID, parent, mount point.
    mounts: Vec<(u32, u32, &'static str)>,
}

impl Kernel {
    /// The kernel's own way: down from the root, by parent and directory.
    fn at(&self, path: &str) -> u32 {
        let mut at = 1;
        for end in path
            .match_indices('/')
            .map(|(at, _)| at)
            .skip(1)
            .chain([path.len()])
        {
            let directory = &path[..end];
            let on = |at| {
                move |(_, parent, point): &&(u32, u32, &str)| *parent == at && *point == directory
            };
            while let Some((id, _, _)) = self.mounts.iter().find(on(at)) {
                at = *id;
            }
        }
        at
    }

    fn mount(&mut self, id: u32, point: &'static str, beneath: bool) {
        let top = self.at(point);
        let covered = self
            .mounts
            .iter_mut()
            .find(|(it, _, at)| *it == top && *at == point);
        match covered.filter(|_| beneath) {
            Some((_, parent, _)) => {
                let below = std::mem::replace(parent, id);
                self.mounts.push((id, below, point));
            }
            None => self.mounts.push((id, top, point)),
        }
    }
}

proptest! {
    #[test]
    fn the_mount_of_a_path_is_that_of_the_kernel(
        steps in prop::collection::vec((0_usize..5, any::<bool>()), 0..12),
        ids in Just((2_u32..20).collect::<Vec<_>>()).prop_shuffle(),
        by_id: bool,
    ) {
        const POINTS: [&str; 5] = ["/a", "/a/b", "/a/b/c", "/b", "/a/c"];
        let mut kernel = Kernel::default();
        for ((point, beneath), id) in steps.into_iter().zip(ids) {
            kernel.mount(id, POINTS[point], beneath);
        }
        let mut mounts = kernel.mounts.clone();
        if by_id {
            mounts.sort_unstable();
        }
        let line = |(id, parent, point): &(u32, u32, &str)| format!("{id} {parent} 7:{id} / {point} rw - xfs x rw\n");
        let text: String = mounts.iter().map(line).collect();
        let table = table(&format!("1 0 7:1 / / rw - xfs x rw\n{text}"));
        for path in POINTS.into_iter().chain(["/", "/a/b/c/d", "/c"]) {
            let expected = if path == "/" { 1 } else { kernel.at(path) };
            prop_assert_eq!(table.of(Path::new(path)).unwrap().id, expected, "{}\n{}", path, text);
        }
    }

    #[test]
    fn no_table_makes_it_panic_or_hang(
        lines in prop::collection::vec((0_u32..6, 0_u32..6, "(/[ab]){1,3}|/"), 0..12),
    ) {
        let line = |(id, parent, point): &(u32, u32, String)| format!("{id} {parent} 7:1 {point} {point} rw - xfs x rw\n");
        let table = table(&lines.iter().map(line).collect::<String>());
        for path in ["/", "/a/b/a", "/b"] {
            let place = table.place(Path::new(path));
            drop(place.and_then(|place| table.path_to(&place)));
            drop(table.names_in(Path::new(path)));
        }
        let _ = table.principal(DeviceNumber { major: 7, minor: 1 });
    }
}

#[test]
fn the_longest_and_the_last_mount_counts() {
    let here = scope(&[("/", 0), ("/srv", 1), ("/srv/vm", 2), ("/srv/vm", 3)], 1);
    let minor = |path: &str| here.mounts.of(Path::new(path)).unwrap().device.minor;
    assert_eq!(minor("/"), 0);
    assert_eq!(minor("/srvother/x"), 0);
    assert_eq!(minor("/srv"), 1);
    assert_eq!(minor("/srv/vmx"), 1);
    assert_eq!(minor("/srv/vm/a/b"), 3);
    assert!(here.is_here(Path::new("/srv/a")));
    assert!(!here.is_here(Path::new("/srv/vm/a")));
    assert_eq!(here.mounts.names_in(Path::new("/")), ["srv"]);
    assert_eq!(here.mounts.names_in(Path::new("/srv")), ["vm"]);
    assert!(here.mounts.names_in(Path::new("/srv/vm")).is_empty());
}

#[test]
fn the_mount_that_shows_the_most_stands_for_a_file_system() {
    let mounts = [
        ("/a", 1),
        ("/data/b", 1),
        ("/data", 1),
        ("/m", 1),
        ("/m", 2),
    ];
    let mut mounts = scope(&mounts, 1).mounts;
    mounts.0[0].root = PathBuf::from("/part");
    let point = |minor| {
        let device = DeviceNumber { major: 7, minor };
        mounts.principal(device).unwrap().point.to_str().unwrap()
    };
    assert_eq!((point(1), point(2)), ("/data", "/m"));
}
