//! What each host of a fleet of hypervisors serves, as far as a rule asks for it.

use std::fmt::Write as _;

use crate::support::hypervisors::line;

pub const IMAGES: usize = 50;

/// Images that a daemon serves as those with the most extents. Here they are others: what a rule costs
/// depends on their number.
const WORST: usize = 20;

/// Metrics of which the rules look at a whole day, and their labels beside instance and job.
pub const LOOKED_BACK_AT: [(&str, &[&str]); 3] = [
    ("up", &[""]),
    (
        "fragwatch_klog_source_up",
        &[",source=\"kmsg\"", ",source=\"stall_detector\""],
    ),
    ("instance:fragwatch_ready", &[""]),
];

/// What one host serves, as far as a rule asks for it. On each host two images are at warning; on
/// one in twenty, one is critical; on one in ten, the kernel rules out the online engine.
pub fn page(host: usize) -> String {
    let mut page = String::new();
    for image in 0..IMAGES {
        let severity = match image {
            0 if host.is_multiple_of(20) => 2,
            0..=2 => 1,
            _ => 0,
        };
        let extents = (host * 7919 + image * 104_729) % 900_000;
        for (metric, value) in [
            ("extents", extents),
            ("severity", severity),
            ("in_use", usize::from(image % 10 != 9)),
            ("extents_growth_per_second", image % 4),
        ] {
            line(
                &mut page,
                &format!("image_{metric}"),
                &path_label(image),
                value,
            );
        }
        if image % 10 == 0 {
            line(
                &mut page,
                "image_seconds_to_critical",
                &path_label(image),
                2_000_000,
            );
        }
        let info = format!(
            "{},vm=\"vm-{host}-{image}\",filesystem=\"/srv\",format=\"qcow2\"",
            path_label(image)
        );
        line(&mut page, "image_info", &info, 1);
        let vm = format!("{},vm=\"vm-{host}-{image}\"", path_label(image));
        if severity > 0 {
            let labels = format!("{vm},in_use=\"1\"");
            line(&mut page, "bad_image_severity", &labels, severity);
        }
        if image < WORST {
            line(&mut page, "worst_image_extents", &vm, extents);
        }
    }
    for part in [
        "rescue",
        "kernel_log",
        "stall_detector",
        "incident_files",
        "history",
        "control_socket",
        "configuration",
    ] {
        line(&mut page, "part_severity", &format!("part=\"{part}\""), 0);
    }
    for source in ["kmsg", "stall_detector"] {
        line(
            &mut page,
            "klog_source_up",
            &format!("source=\"{source}\""),
            1,
        );
    }
    let online = if host.is_multiple_of(10) {
        (0, "kernel_known_bad")
    } else {
        (1, "")
    };
    for (engine, (usable, reason)) in [("xfs_fsr", (1, "")), ("online", online)] {
        line(
            &mut page,
            "engine_usable",
            &format!("engine=\"{engine}\",reason=\"{reason}\""),
            usable,
        );
        for outcome in ["improved", "failed"] {
            line(
                &mut page,
                "defrag_runs_total",
                &format!("engine=\"{engine}\",outcome=\"{outcome}\""),
                host,
            );
        }
    }
    let release = format!("release=\"6.{}.0\"", host % 5);
    line(&mut page, "kernel_info", &release, 1);
    for trigger in ["kernel_log", "stall", "file"] {
        line(
            &mut page,
            "rescue_incidents_total",
            &format!("trigger=\"{trigger}\""),
            0,
        );
    }
    for step in ["drop_slab", "compact_memory", "drop_all"] {
        for outcome in ["done", "failed", "dry_run"] {
            line(
                &mut page,
                "rescue_actions_total",
                &format!("step=\"{step}\",outcome=\"{outcome}\""),
                0,
            );
        }
    }
    for image in 0..IMAGES {
        let vm = format!("vm=\"vm-{host}-{image}\"");
        line(&mut page, "vm_extents", &vm, image * 104_729);
    }
    for (severity, images) in [(0, IMAGES - 3), (1, 3), (2, 0)] {
        let severity = format!("severity=\"{severity}\"");
        line(&mut page, "images", &severity, images);
    }
    line(&mut page, "probe_stalled", "filesystem=\"/srv\"", 0);
    for (metric, value) in [
        ("extents_growth_per_second", 75),
        ("host_severity", 0),
        ("rescue_active", 0),
        ("klog_lost_total", 0),
        ("klog_roundtrip_success", 1),
        ("sweep_timestamp_seconds", 4_000_000_000),
        ("maintenance_window_open", 0),
        ("maintenance_next_window_timestamp_seconds", host % 2),
        ("config_reload_success", 1),
        ("history_up", 1),
    ] {
        let _ = writeln!(page, "fragwatch_{metric} {value}");
    }
    page
}

fn path_label(image: usize) -> String {
    format!("image=\"/srv/vm/customer-{image}/disk.qcow2\"")
}
