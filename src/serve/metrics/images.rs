//! The metrics of all images. Their text takes 0.7 MiB for 1,000 images, so none of it is kept: it is
//! written in chunks while a client reads it.

use std::collections::BTreeMap;

use super::table::*;
use super::text::{append_header, append_value, float, label};
use crate::model::Filesystem;
use crate::model::path::distinct;
use crate::serve::view::ImageView;

/// Minimum length of a chunk, except for the last one, in bytes.
const CHUNK: usize = 32 << 10;

/// The last one has further labels, the others values.
const METRICS: [Metric; 9] = [
    IMAGE_EXTENTS,
    IMAGE_FRAGMENTS,
    IMAGE_SIZE,
    IMAGE_ALLOCATED,
    IMAGE_GROWTH,
    IMAGE_SECONDS_TO_CRITICAL,
    IMAGE_SEVERITY,
    IMAGE_IN_USE,
    IMAGE_INFO,
];

/// The metrics of all images at one moment.
#[derive(Debug, Default)]
pub struct ImageMetrics {
    images: Vec<Series>,
    /// Whether any image has the metric.
    used: [bool; METRICS.len()],
}

/// One image.
#[derive(Debug)]
struct Series {
    /// `{image="/srv/a.qcow2"`
    image: Box<str>,
    /// The further labels of [`IMAGE_INFO`].
    info: Box<str>,
    /// In the order of [`METRICS`]; NaN if a series is absent.
    values: [f64; METRICS.len() - 1],
}

impl ImageMetrics {
    /// Of several images with the same path, the last one counts: a duplicate series would make
    /// Prometheus refuse the whole page. While a file system hangs, an image that was replaced is not
    /// forgotten yet.
    pub fn new(images: &[ImageView<'_>]) -> ImageMetrics {
        let named = images.iter();
        let named: BTreeMap<String, _> = named.map(|it| (distinct(&it.sample.path), it)).collect();
        let images: Vec<_> = named
            .iter()
            .map(|(path, it)| Series::new(path, it))
            .collect();
        let has = |metric| {
            let mut values = images.iter().map(|image| image.values.get(metric));
            values.any(|value: Option<&f64>| value.is_none_or(|value| !value.is_nan()))
        };
        ImageMetrics {
            used: std::array::from_fn(has),
            images,
        }
    }

    /// The text from `place` on, which begins with 0 and is moved; `None` at the end.
    pub fn chunk(&self, place: &mut usize) -> Option<String> {
        let mut text = String::with_capacity(CHUNK + 1024);
        while *place < METRICS.len() * self.images.len() && text.len() < CHUNK {
            self.append(
                *place / self.images.len(),
                *place % self.images.len(),
                &mut text,
            );
            *place += 1;
        }
        (!text.is_empty()).then_some(text)
    }

    fn append(&self, number: usize, image: usize, text: &mut String) {
        let (metric, image_begins) = (METRICS[number], image == 0);
        if image_begins && self.used[number] {
            append_header(text, metric);
        }
        let image = &self.images[image];
        let value = image.values.get(number);
        if value.is_some_and(|value| value.is_nan()) {
            return;
        }
        text.push_str(metric.name);
        text.push_str(&image.image);
        if value.is_none() {
            text.push_str(&image.info);
        }
        text.push('}');
        append_value(text, *value.unwrap_or(&1.0));
    }
}

impl Series {
    fn new(path: &str, image: &ImageView<'_>) -> Series {
        let mount = |filesystem: &Filesystem| label(&distinct(&filesystem.mount));
        let mount = image.filesystem.map(mount).unwrap_or_default();
        let vm = label(&image.vm().unwrap_or_default());
        let format = image.sample.format.as_str();
        let values = [
            Some(float(image.sample.extents.0)),
            image.map.map(|map| float(map.fragments)),
            Some(float(image.sample.size.0)),
            Some(float(image.sample.allocated.0)),
            image.growth.rate().map(|growth| growth.per_second()),
            image.forecast.time_left().map(|left| left.as_secs_f64()),
            Some(image.severity.as_number().into()),
            Some(image.owner.in_use().into()),
        ];
        Series {
            image: format!("{{image=\"{}\"", label(path)).into(),
            info: format!(",vm=\"{vm}\",filesystem=\"{mount}\",format=\"{format}\"").into(),
            values: values.map(|value| value.unwrap_or(f64::NAN)),
        }
    }
}
