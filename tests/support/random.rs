//! Numbers that look random and are the same in every run.

/// The seed of everything that takes none.
pub const SEED: u64 = 0x66_7261_6777_6174;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose blocks.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// One of `0..end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // The high half of the product: no division, and the bias does not matter here.
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// `count` different ones of `0..end`, in random order.
    pub fn distinct(&mut self, end: u64, count: u64) -> Vec<u64> {
        assert!(count <= end, "{count} different numbers below {end}");
        let mut all: Vec<u64> = (0..end).collect();
        for i in 0..count {
            let other = i + self.below(end - i);
            all.swap(i as usize, other as usize);
        }
        all.truncate(count as usize);
        all
    }
}

/// A number that shows nothing of the one it was made of.
pub fn mix(number: u64) -> u64 {
    let mut z = number;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
