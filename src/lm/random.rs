//! Random numbers that are the same everywhere: a function of a seed and a counter, made of integer operations only.

/// An endless row of random numbers. Streams of different seeds have nothing to do with each other.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    key: u64,
    counter: u64,
}

/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": the finaliser of `SplitMix64`.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The odd number nearest to 2⁶⁴ over the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The bits at a place of the stream of a key, without the places before it.
pub(crate) fn hash(key: u64, place: u64) -> u64 {
    mix(key.wrapping_add(place.wrapping_add(1).wrapping_mul(GOLDEN)))
}

impl Stream {
    /// The stream of a seed and of a name, so that one seed serves several purposes.
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        let key = name.bytes().fold(mix(seed ^ GOLDEN), |key, byte| mix(key ^ u64::from(byte)).wrapping_add(GOLDEN));
        Self { key: mix(key), counter: 0 }
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.counter += 1;
        hash(self.key, self.counter - 1)
    }

    /// The next number of [0, 1), a multiple of 2⁻⁵³.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// The next number of 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// The next number of mean 0 and variance 1 that is nearly normal: a sum of twelve uniform ones, because logarithm
    /// and cosine differ between platforms.
    pub(crate) fn normal(&mut self) -> f32 {
        let mut sum = 0u32;
        for _ in 0..3 {
            let bits = self.bits();
            sum += (0..4).map(|part| (bits >> (16 * part)) as u32 & 0xffff).sum::<u32>();
        }
        // Twelve of 0..65536 have mean 6 · 65535 and variance (65536² − 1), near enough 65536².
        (f64::from(sum) - 6.0 * 65535.0) as f32 / 65536.0
    }

    /// Brings a slice into random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_everywhere() {
        let mut stream = Stream::new(7, "test");
        let first: Vec<u64> = (0..3).map(|_| stream.bits()).collect();
        // From the same formulas in Python.
        assert_eq!(first, [6_655_816_699_143_147_350, 17_257_984_592_887_493_005, 2_577_462_772_572_744_378]);
    }

    #[test]
    fn moments_are_those_asked_for() {
        let mut stream = Stream::new(1, "moments");
        let numbers: Vec<f64> = (0..100_000).map(|_| f64::from(stream.normal())).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / numbers.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[stream.below(7)] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let mean = (0..100_000).map(|_| stream.uniform()).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.01);
    }

    #[test]
    fn neighbouring_seeds_and_names_differ() {
        let firsts: std::collections::BTreeSet<u64> =
            (0..1000).flat_map(|seed| ["a", "b"].map(|name| Stream::new(seed, name).bits())).collect();
        assert_eq!(firsts.len(), 2000);
    }

    #[test]
    fn shuffling_keeps_the_items() {
        let mut items: Vec<usize> = (0..100).collect();
        Stream::new(3, "shuffle").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
