//! Repetitions of a measurement.

use std::fmt;
use std::time::{Duration, Instant};

use fragwatch::internals::model::Bytes;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
}

/// The values of all repetitions, the smallest first.
#[derive(Debug, Clone)]
pub struct Samples {
    unit: Unit,
    values: Vec<f64>,
}

impl Samples {
    pub fn new(unit: Unit, mut values: Vec<f64>) -> Samples {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Samples { unit, values }
    }

    pub fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        if self.values.len() % 2 == 1 {
            self.values[middle]
        } else {
            f64::midpoint(self.values[middle - 1], self.values[middle])
        }
    }
}

impl Samples {
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// What 99 of 100 values do not exceed.
    pub fn p99(&self) -> f64 {
        let at = (self.values.len() * 99).div_ceil(100);
        self.values[at - 1]
    }

    /// `45 µs, 99 % within 105 µs`
    pub fn with_p99(&self) -> String {
        let [median, p99] = [self.median(), self.p99()].map(|value| show(self.unit, value));
        format!("{median}, 99 % within {p99}")
    }

    pub fn most(&self) -> f64 {
        self.values.last().copied().unwrap_or_default()
    }
}

impl fmt::Display for Samples {
    /// The median, and between what the values lie: `1.23 s (1.20 s–1.31 s)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value| show(self.unit, value);
        write!(f, "{}", shown(self.median()))?;
        if let [least, .., most] = self.values[..] {
            write!(f, " ({}–{})", shown(least), shown(most))?;
        }
        Ok(())
    }
}

/// A value as a person reads it.
pub fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Bytes if value < 0.0 => format!("−{}", Bytes(-value as u64)),
        Unit::Bytes => Bytes(value as u64).to_string(),
        Unit::Seconds => {
            let scales = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")];
            let scale = scales.iter().find(|(scale, _)| value >= *scale);
            let (scale, name) = scale.unwrap_or(&scales[3]);
            let scaled = value / scale;
            let digits = usize::from(scaled < 100.0) + usize::from(scaled < 10.0);
            format!("{scaled:.digits$} {name}")
        }
    }
}

/// Has each of them measure once a round, so that whatever else the machine does disturbs all of
/// them alike; another one begins each round. A round before the first, which warms the caches,
/// does not count.
pub fn in_turns<const N: usize>(
    unit: Unit,
    repetitions: usize,
    measure: [&mut dyn FnMut() -> f64; N],
) -> [Samples; N] {
    let mut values = [const { Vec::new() }; N];
    for round in 0..=repetitions {
        for turn in 0..N {
            let who = (round + turn) % N;
            let value = measure[who]();
            if round > 0 {
                values[who].push(value);
            }
        }
    }
    values.map(|values| Samples::new(unit, values))
}

/// How long one of many calls takes.
pub fn each_of(calls: u32, mut call: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..calls {
        call();
    }
    let took: Duration = began.elapsed();
    took.as_secs_f64() / f64::from(calls)
}
