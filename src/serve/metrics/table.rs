//! Every metric: its kind, its name and its help text.

/// A metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    pub(super) kind: &'static str,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
}

macro_rules! metrics {
    ($($kind:ident $constant:ident $name:literal $help:literal)*) => {
        $(pub(super) const $constant: Metric = Metric {
            kind: stringify!($kind),
            name: $name,
            help: $help,
        };)*
        pub(super) const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    // Of the daemon's life, in the global recorder.
    histogram PROBE_DURATION "fragwatch_probe_duration_seconds"
        "Time that one probe of one image took."
    counter PROBE_ERRORS "fragwatch_probe_errors_total"
        "Probes that failed, and file systems that did not answer."
    gauge RELOAD_SUCCESS "fragwatch_config_reload_success"
        "Whether the last reading of the configuration succeeded (1) or the former one stays in force (0)."
    gauge RELOAD_TIMESTAMP "fragwatch_config_reload_timestamp_seconds"
        "When the configuration in force was read."
    gauge LISTENING "fragwatch_metrics_listening"
        "Whether metrics.listen is served; 0 is seen in the textfile only."
    gauge BUILD_INFO "fragwatch_build_info" "Version of fragwatch; always 1."
    counter KLOG_RECORDS "fragwatch_klog_records_total" "Records read from the kernel's log."
    counter KLOG_LOST "fragwatch_klog_lost_total" "Records overwritten before they were read."
    counter KLOG_MATCHES "fragwatch_klog_matches_total" "Records that matched a rule."
    counter KLOG_LINES "fragwatch_klog_lines_total"
        "Lines read from a log file, by what they are."
    counter RESCUE_ACTIONS "fragwatch_rescue_actions_total"
        "Actions of the rescue, by step and outcome."
    counter RESCUE_INCIDENTS "fragwatch_rescue_incidents_total"
        "Incidents, by what they began with."
    gauge RESCUE_ACTIVE "fragwatch_rescue_active" "Whether there is an incident now."
    histogram RESCUE_REACTION "fragwatch_rescue_reaction_seconds"
        "Time from reading the reason for an action to its begin."
    counter INCIDENT_FILES "fragwatch_rescue_incident_files_total"
        "Writes of incident files, by outcome."
    counter RESCUE_NEWS_LOST "fragwatch_rescue_news_lost_total"
        "News of the rescue that were overwritten before they were read; the actions were done."
    counter DEFRAG_RUNS "fragwatch_defrag_runs_total" "Defragmentations by engine and outcome."
    counter DEFRAG_EXTENTS_REMOVED "fragwatch_defrag_extents_removed_total"
        "Extents that defragmentations have taken away."
    gauge DEFRAG_ACTIVE "fragwatch_defrag_active" "Defragmentations under way."
    gauge DEFRAG_QUEUE "fragwatch_defrag_queue"
        "Images that are to be defragmented in the window that is open."
    gauge WINDOW_OPEN "fragwatch_maintenance_window_open"
        "Whether a maintenance window is open (1)."
    gauge NEXT_WINDOW "fragwatch_maintenance_next_window_timestamp_seconds"
        "When the next maintenance window opens; absent if there is none."
    counter HISTORY_WRITTEN "fragwatch_history_records_total" "Records written to the history."
    counter HISTORY_LOST "fragwatch_history_lost_total"
        "Records that the history lost, because its disk hangs, is full or fails."
    counter HISTORY_MOVED_ASIDE "fragwatch_history_moved_aside_total"
        "Damaged databases that were moved aside; a new one was begun."
    gauge HISTORY_UP "fragwatch_history_up"
        "Whether the history's database is open and was last written without trouble."
    // Of the current state, rendered from it.
    gauge IMAGE_EXTENTS "fragwatch_image_extents" "Records of the image's extent map."
    gauge IMAGE_FRAGMENTS "fragwatch_image_fragments"
        "Physically contiguous runs of the image, when its map was last read."
    gauge IMAGE_SIZE "fragwatch_image_size_bytes" "Length of the image file."
    gauge IMAGE_ALLOCATED "fragwatch_image_allocated_bytes" "What the image occupies on disk."
    gauge IMAGE_GROWTH "fragwatch_image_extents_growth_per_second"
        "Extents that the image gains in a second, over the growth window; absent while unknown."
    gauge IMAGE_SECONDS_TO_CRITICAL "fragwatch_image_seconds_to_critical"
        "Seconds until the image has as many extents as is critical; absent while unknown or far."
    gauge IMAGE_SEVERITY "fragwatch_image_severity"
        "How bad it is by the configured thresholds: 0 ok, 1 warning, 2 critical."
    gauge IMAGE_IN_USE "fragwatch_image_in_use"
        "Whether a process of this host has the image open: 1 or 0."
    gauge IMAGE_INFO "fragwatch_image_info" "What the image is; always 1."
    gauge IMAGES "fragwatch_images" "Images by severity: 0 ok, 1 warning, 2 critical."
    gauge IMAGES_UNPROTECTED "fragwatch_images_unprotected"
        "Images that can gain an extent with nearly every block that is written."
    gauge VM_EXTENTS "fragwatch_vm_extents"
        "Extents of all images of a VM; with an empty label, of those that no VM has open."
    gauge GROWTH "fragwatch_extents_growth_per_second"
        "Extents gained in a second by all images of which it is known; absent while unknown."
    gauge FILESYSTEM_EXTENTS "fragwatch_filesystem_extents"
        "Extents of all images on the file system."
    gauge FILESYSTEM_FREE "fragwatch_filesystem_free_bytes" "Free space of the file system."
    gauge FILESYSTEM_SIZE "fragwatch_filesystem_size_bytes" "Size of the file system."
    histogram FREE_EXTENTS "fragwatch_filesystem_free_extents"
        "Lengths of the free extents in bytes, when they were last read."
    gauge LARGEST_FREE_EXTENT "fragwatch_filesystem_largest_free_extent_bytes"
        "Length of the longest free extent, when they were last read."
    gauge MAP_MEMORY "fragwatch_extent_map_memory_bytes"
        "Kernel memory that the extent maps of all images on XFS take when they are loaded (estimate)."
    gauge HOST_SEVERITY "fragwatch_host_severity"
        "How bad it is what these maps take of the host's memory: 0 ok, 1 warning, 2 critical."
    gauge SWEEP_TIMESTAMP "fragwatch_sweep_timestamp_seconds"
        "When the last pass over all images ended."
    gauge PROBE_STALLED "fragwatch_probe_stalled"
        "Whether a probe of this file system hangs (1); its counts are then old."
    gauge ENGINE_USABLE "fragwatch_engine_usable"
        "Whether an engine can be used on this host (1), or why not (reason)."
    gauge DOCTOR_FINDINGS "fragwatch_doctor_findings"
        "Findings of the last examination of the host that are not silenced, by check and severity."
    gauge FREE_BLOCKS "fragwatch_memory_free_blocks"
        "Free blocks of 2^order pages, in all zones. None left of order 4 and more is when the XFS of old kernels begins to wait."
    counter COMPACTION_FAILURES "fragwatch_memory_compaction_failures_total"
        "Compactions that made no block."
    counter ALLOCATION_STALLS "fragwatch_memory_allocation_stalls_total"
        "Allocations that had to wait until their own task had reclaimed memory."
    gauge PART_SEVERITY "fragwatch_part_severity"
        "How bad the state of a part of the daemon is: 0 up, 1 impaired, 2 down; absent if it is switched off."
    gauge KLOG_SOURCE_UP "fragwatch_klog_source_up"
        "Whether a source of kernel messages can be read."
    gauge ROUNDTRIP_SECONDS "fragwatch_klog_roundtrip_seconds"
        "Time of the last drill from writing its record to the kernel's log to the actor's report."
    gauge ROUNDTRIP_SUCCESS "fragwatch_klog_roundtrip_success"
        "Whether the last drill came through."
}
