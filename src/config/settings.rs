//! The settings as the rest of the program sees them: complete, in their own types, checked.
//!
//! Pure: nothing here opens a file. What cannot work is refused here, so that no other room has to
//! think of an interval of zero or a glob that does not compile.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::diagnose::{Finding, Place};
use super::raw::{Key, Raw, RawImages, RawLimits, RawMetrics, RawSampling, RawThresholds};
use super::reader::Located;
use super::values::{OrNever, Value, quoted};
use crate::model::memory::EXTENT_LIMIT_64;
use crate::model::{Bytes, ExtentCount};

/// The shortest interval. Counting is cheap, but a sweep over a thousand images takes its time.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest timeout. A disk that spins up or a loaded host takes longer than a few
/// milliseconds without anything being wrong.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Which files are watched.
    pub images: Images,
    /// How often they are looked at.
    pub sampling: Sampling,
    /// What is too much.
    pub thresholds: Thresholds,
    /// Where the metrics are served.
    pub metrics: Metrics,
}

/// Which files are watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// Absolute paths of files and of directories, which are searched in depth, or globs
    /// ([`is_glob`]). May be empty: then nothing is watched.
    pub paths: Vec<String>,
    /// Globs of the files that are images; if there are none, every file that looks like a disk
    /// image. A glob without `/` is meant for the name of a file, any other for its whole path.
    pub include: Vec<String>,
    /// Globs, likewise, of the files that are none. They win over `include`.
    pub exclude: Vec<String>,
    /// Files of fewer bytes than this are none.
    pub min_size: Bytes,
}

/// How often images are looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// From one count of the extents of all images to the next. A second at least.
    pub interval: Duration,
    /// From one reading of the whole extent maps to the next, `interval` at least. Nothing: they
    /// are never read.
    pub map_interval: Option<Duration>,
    /// An extent map with more extents than this is not read: the kernel would have to hold it in
    /// memory. One at least.
    pub map_max_extents: ExtentCount,
    /// How long a call on an image may take before its file system counts as stalled. 100 ms at
    /// least, `interval` at most.
    pub probe_timeout: Duration,
}

/// What is too much.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// From here on an image wants attention.
    pub warning: Limits,
    /// From here on it endangers the host. Each limit is above that of the warning.
    pub critical: Limits,
}

/// The thresholds of one severity.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// An image with this many extents or more has the severity. One at least.
    pub extents: ExtentCount,
}

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Address and port of the HTTP server. Port 0 is one that the kernel chooses.
    pub listen: SocketAddr,
}

impl Default for Images {
    fn default() -> Images {
        Images {
            paths: vec!["/var/lib/libvirt/images".to_owned()],
            include: Vec::new(),
            exclude: vec!["*.iso".to_owned()],
            min_size: Bytes(256 << 20),
        }
    }
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            interval: Duration::from_secs(60),
            map_interval: Some(Duration::from_secs(12 * 3600)),
            map_max_extents: ExtentCount(1_000_000),
            probe_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds {
            warning: Limits {
                extents: ExtentCount(500_000),
            },
            critical: Limits {
                extents: ExtentCount(5_000_000),
            },
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9843)),
        }
    }
}

/// Whether a path of [`Images::paths`] is a glob rather than the name of a file or directory.
#[must_use]
pub fn is_glob(path: impl AsRef<OsStr>) -> bool {
    path.as_ref()
        .as_bytes()
        .iter()
        .any(|byte| b"*?[{".contains(byte))
}

/// Compiles globs the way that the configuration means them: `*` and `?` match no `/`, `**`
/// matches any number of directories.
///
/// # Errors
/// If one of them is no glob, or all together are too large. Those of valid settings are fine.
pub fn compile_globs<'g>(
    globs: impl IntoIterator<Item = &'g str>,
) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    set.build()
}

impl Settings {
    /// Every setting as TOML that reads back as these settings. Holds no control characters, so
    /// that it can be printed to a terminal.
    #[must_use]
    pub fn to_toml(&self) -> String {
        Raw::from(self).to_toml()
    }

    /// What `raw` sets, and the defaults for the rest. Adds to `findings` what cannot be.
    pub(super) fn from_raw(raw: &Raw, findings: &mut Vec<Finding>) -> Settings {
        Settings {
            images: Images::from_raw(&raw.images, findings),
            sampling: Sampling::from_raw(&raw.sampling, findings),
            thresholds: Thresholds::from_raw(&raw.thresholds, findings),
            metrics: Metrics::from_raw(&raw.metrics),
        }
    }

    /// Where values contradict each other. To be asked only of settings that came from `raw`
    /// without a finding: a default in the place of a value that could not be read would contradict
    /// values that are right.
    pub(super) fn contradictions(&self, raw: &Raw) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.sampling.contradictions(&raw.sampling, &mut findings);
        self.thresholds
            .contradictions(&raw.thresholds, &mut findings);
        findings
    }
}

impl Images {
    fn from_raw(raw: &RawImages, findings: &mut Vec<Finding>) -> Images {
        let default = Images::default();
        for path in raw.paths.iter().flat_map(|paths| &paths.value) {
            findings.extend(check_path(path));
        }
        for (name, globs) in [
            ("images.include", &raw.include),
            ("images.exclude", &raw.exclude),
        ] {
            findings.extend(globs.iter().flat_map(|globs| check_globs(name, globs)));
        }
        Images {
            paths: texts_or(&raw.paths, default.paths),
            include: texts_or(&raw.include, default.include),
            exclude: texts_or(&raw.exclude, default.exclude),
            min_size: value_or(&raw.min_size, default.min_size),
        }
    }
}

impl Sampling {
    fn from_raw(raw: &RawSampling, findings: &mut Vec<Finding>) -> Sampling {
        let default = Sampling::default();
        let count = "sampling.map_max_extents";
        findings.extend(at_least(
            "sampling.interval",
            &raw.interval,
            SHORTEST_INTERVAL,
        ));
        findings.extend(at_least(
            "sampling.probe_timeout",
            &raw.probe_timeout,
            SHORTEST_TIMEOUT,
        ));
        findings.extend(at_least(count, &raw.map_max_extents, ExtentCount(1)));
        findings.extend(at_most(count, &raw.map_max_extents, EXTENT_LIMIT_64));
        Sampling {
            interval: value_or(&raw.interval, default.interval),
            map_interval: value_or(&raw.map_interval, OrNever(default.map_interval)).0,
            map_max_extents: value_or(&raw.map_max_extents, default.map_max_extents),
            probe_timeout: value_or(&raw.probe_timeout, default.probe_timeout),
        }
    }

    fn contradictions(&self, raw: &RawSampling, findings: &mut Vec<Finding>) {
        let interval = || Side::new("sampling.interval", &self.interval, &raw.interval);
        if self.probe_timeout > self.interval {
            let timeout = Side::new(
                "sampling.probe_timeout",
                &self.probe_timeout,
                &raw.probe_timeout,
            );
            let write = format!("probe_timeout = {} or less", self.interval.write());
            findings.extend(contradiction(timeout, "is longer than", interval(), &write));
        }
        if self
            .map_interval
            .is_some_and(|map_interval| map_interval < self.interval)
        {
            let map_interval = OrNever(self.map_interval);
            let map_interval = Side::new("sampling.map_interval", &map_interval, &raw.map_interval);
            let write = format!("map_interval = {} or more", self.interval.write());
            findings.extend(contradiction(
                map_interval,
                "is shorter than",
                interval(),
                &write,
            ));
        }
    }
}

impl Thresholds {
    fn from_raw(raw: &RawThresholds, findings: &mut Vec<Finding>) -> Thresholds {
        let default = Thresholds::default();
        Thresholds {
            warning: Limits::from_raw("warning", &raw.warning, default.warning, findings),
            critical: Limits::from_raw("critical", &raw.critical, default.critical, findings),
        }
    }

    fn contradictions(&self, raw: &RawThresholds, findings: &mut Vec<Finding>) {
        let (warning, critical) = (self.warning.extents, self.critical.extents);
        if critical <= warning {
            let above = ExtentCount(warning.0.saturating_add(1)).write();
            let write = format!("critical = {{ extents = {above} }} or more");
            findings.extend(contradiction(
                Side::new(
                    "thresholds.critical.extents",
                    &critical,
                    &raw.critical.extents,
                ),
                "is not above",
                Side::new("thresholds.warning.extents", &warning, &raw.warning.extents),
                &write,
            ));
        }
    }
}

impl Limits {
    fn from_raw(
        severity: &str,
        raw: &RawLimits,
        default: Limits,
        findings: &mut Vec<Finding>,
    ) -> Limits {
        let name = format!("thresholds.{severity}.extents");
        findings.extend(at_least(&name, &raw.extents, ExtentCount(1)));
        findings.extend(at_most(&name, &raw.extents, EXTENT_LIMIT_64));
        Limits {
            extents: value_or(&raw.extents, default.extents),
        }
    }
}

impl Metrics {
    fn from_raw(raw: &RawMetrics) -> Metrics {
        Metrics {
            listen: value_or(&raw.listen, Metrics::default().listen),
        }
    }
}

impl From<&Settings> for Raw {
    /// The settings as a file that sets every key.
    fn from(settings: &Settings) -> Raw {
        let Settings {
            images,
            sampling,
            thresholds,
            metrics,
        } = settings;
        let limits = |limits: &Limits| RawLimits {
            extents: given(limits.extents),
        };
        Raw {
            images: RawImages {
                paths: given_texts(&images.paths),
                include: given_texts(&images.include),
                exclude: given_texts(&images.exclude),
                min_size: given(images.min_size),
            },
            sampling: RawSampling {
                interval: given(sampling.interval),
                map_interval: given(OrNever(sampling.map_interval)),
                map_max_extents: given(sampling.map_max_extents),
                probe_timeout: given(sampling.probe_timeout),
            },
            thresholds: RawThresholds {
                warning: limits(&thresholds.warning),
                critical: limits(&thresholds.critical),
            },
            metrics: RawMetrics {
                listen: given(metrics.listen),
            },
        }
    }
}

fn value_or<T: Clone>(key: &Key<T>, default: T) -> T {
    key.as_ref()
        .map_or(default, |located| located.value.clone())
}

fn texts_or(key: &Key<Vec<Located<String>>>, default: Vec<String>) -> Vec<String> {
    let Some(texts) = key else { return default };
    texts.value.iter().map(|text| text.value.clone()).collect()
}

fn given<T>(value: T) -> Key<T> {
    Some(Located::nowhere(value))
}

fn given_texts(texts: &[String]) -> Key<Vec<Located<String>>> {
    given(texts.iter().cloned().map(Located::nowhere).collect())
}

fn at_least<T: Value + PartialOrd>(name: &str, key: &Key<T>, least: T) -> Option<Finding> {
    let located = key.as_ref().filter(|located| located.value < least)?;
    Some(out_of_range(name, located, "is below", &least, "or more"))
}

fn at_most<T: Value + PartialOrd>(name: &str, key: &Key<T>, most: T) -> Option<Finding> {
    let located = key.as_ref().filter(|located| located.value > most)?;
    Some(out_of_range(name, located, "is above", &most, "or less"))
}

fn out_of_range<T: Value>(
    name: &str,
    located: &Located<T>,
    is: &str,
    bound: &T,
    or: &str,
) -> Finding {
    let last = name.rsplit('.').next().unwrap_or(name);
    let bound = bound.write();
    let message = format!("{name}: {} {is} {bound}", located.value.write());
    Finding::new(
        located.place.clone(),
        message,
        &format!("{last} = {bound} {or}"),
    )
}

/// One of two values that contradict each other.
struct Side<'r> {
    name: &'static str,
    written: String,
    /// Where it was set; nowhere if it is the default.
    place: Option<&'r Place>,
}

impl<'r> Side<'r> {
    fn new<T: Value>(name: &'static str, value: &T, key: &'r Key<T>) -> Side<'r> {
        Side {
            name,
            written: value.write(),
            place: key.as_ref().map(|located| &located.place),
        }
    }

    fn shown(&self) -> String {
        let default = if self.place.is_some() {
            ""
        } else {
            " (the default)"
        };
        format!("{} = {}{default}", self.name, self.written)
    }
}

/// `one` contradicts `other`. Nothing if both are defaults, which cannot be.
fn contradiction(one: Side<'_>, relation: &str, other: Side<'_>, write: &str) -> Option<Finding> {
    let message = format!("{} {relation} {}", one.shown(), other.shown());
    let place = one.place.or(other.place)?.clone();
    let mut finding = Finding::new(place, message, write);
    if let (Some(_), Some(place)) = (one.place, other.place) {
        finding.other = Some((place.clone(), format!("{} is set here", other.name)));
    }
    Some(finding)
}

/// What is wrong with a path of `images.paths`.
fn check_path(path: &Located<String>) -> Option<Finding> {
    const NAME: &str = "images.paths";
    let text = &path.value;
    let finding = |message: &str, write: &str| {
        let message = format!("{NAME}: {} {message}", quoted(text));
        Some(Finding::new(path.place.clone(), message, write))
    };
    if !text.starts_with('/') {
        return finding("is not absolute", "\"/…\", the path from the root on");
    }
    if text.contains('\0') {
        return finding("holds a NUL, as no path can", "the path without it");
    }
    if is_glob(text) {
        check_glob(NAME, path)
    } else {
        None
    }
}

/// What is wrong with the globs of a list, each for itself and all together.
fn check_globs(name: &str, globs: &Located<Vec<Located<String>>>) -> Vec<Finding> {
    let findings: Vec<Finding> = globs
        .value
        .iter()
        .filter_map(|glob| check_glob(name, glob).or_else(|| check_anchor(name, glob)))
        .collect();
    let all = globs.value.iter().map(|glob| glob.value.as_str());
    if findings.is_empty()
        && let Err(error) = compile_globs(all)
    {
        let message = format!("{name}: all globs together: {}", error.kind());
        return vec![Finding::new(
            globs.place.clone(),
            message,
            "fewer or shorter globs",
        )];
    }
    findings
}

fn check_glob(name: &str, glob: &Located<String>) -> Option<Finding> {
    let text = &glob.value;
    let error = compile_globs([text.as_str()]).err()?;
    let message = format!("{name}: {} is not a glob: {}", quoted(text), error.kind());
    let literal = quoted(&globset::escape(text));
    let write = format!("{literal} if every character is meant as it is");
    Some(Finding::new(glob.place.clone(), message, &write))
}

/// A glob with a slash is held against the whole path, so it can only match if it may begin with a
/// slash.
fn check_anchor(name: &str, glob: &Located<String>) -> Option<Finding> {
    let text = &glob.value;
    if text.is_empty() {
        let message = format!("{name}: \"\" matches nothing");
        return Some(Finding::new(
            glob.place.clone(),
            message,
            "\"*\" for every file",
        ));
    }
    if !text.contains('/') || text.starts_with('/') || text.starts_with("**") {
        return None;
    }
    if text.starts_with(['{', '[', '\\']) {
        // May begin with a slash; whoever writes this knows.
        return None;
    }
    let message = format!(
        "{name}: {} matches nothing: with a slash in it, it is held against the whole path",
        quoted(text)
    );
    let rest = text.strip_prefix("./").unwrap_or(text);
    let write = quoted(&format!("**/{rest}"));
    Some(Finding::new(glob.place.clone(), message, &write))
}
