//! Moments in eight bits: a scale for each block of 256 numbers, and a byte for each number.
//!
//! # Form
//! The scale is the largest magnitude of the block, f32. A byte is a small floating-point number that is multiplied with
//! it: 3 bits of mantissa f, the rest exponent e and, for the first moment, a sign as the highest bit.
//! - Second moment: 5 bits of exponent, value (1 + f/8) · 2^(e−31), for e = 0 it is f/8 · 2^−30: from 1 down to 2^−33.
//! - First moment: 4 bits of exponent, value ±(1 + f/8) · 2^(e−15), for e = 0 it is f/8 · 2^−14: from 1 down to 2^−17.
//!
//! # Rounding
//! A moment moves little in a step: AdamW's second by a thousandth of its distance. Rounded to the nearest number it would
//! stand still for ever. So each number goes up or down at random, with the probabilities that make its mean the number
//! itself. Randomness is a function of tensor, step and place alone, so a run that goes on from a checkpoint gets the same
//! bits. A second moment that is not 0 never becomes 0, but the smallest number there is: an update may be too small by
//! that, never too large.

use super::super::random::hash;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 256;
/// Tensors of fewer numbers keep their moments in f32: they weigh nothing, and norms are delicate.
pub(super) const LEAST: usize = 4096;

/// Bits of an f32 that a byte has no room for: 23 of mantissa less 3.
const CUT: u32 = 20;

/// A moment of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Eight {
    /// One for each number.
    pub(super) codes: Vec<u8>,
    /// One for each block.
    pub(super) scales: Vec<f32>,
}

impl Eight {
    /// Zeros.
    pub(super) fn new(count: usize) -> Self {
        Self { codes: vec![0; count], scales: vec![0.0; count.div_ceil(BLOCK)] }
    }
}

/// Which of the two forms a byte has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A sign, 4 bits of exponent.
    Signed,
    /// 5 bits of exponent, never rounded to 0.
    Positive,
}

impl Form {
    /// The exponent of 1.
    const fn top(self) -> u32 {
        match self {
            Self::Signed => 15,
            Self::Positive => 31,
        }
    }

    /// The value of a byte, of which the largest that occurs is 1.
    const fn value(self, code: u8) -> f32 {
        let (magnitude, negative) = match self {
            Self::Signed => (code & 0x7f, code & 0x80 != 0),
            Self::Positive => (code, false),
        };
        let (exponent, fraction) = (magnitude as u32 >> 3, magnitude as u32 & 7);
        // An f32 with the exponent's place moved; the smallest ones have no leading 1.
        let value = if exponent == 0 {
            fraction as f32 * f32::from_bits((127 + 1 - self.top() - 3) << 23)
        } else {
            f32::from_bits(((127 + exponent - self.top()) << 23) | (fraction << CUT))
        };
        if negative { -value } else { value }
    }

    const fn table(self) -> [f32; 256] {
        let mut table = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            table[code] = self.value(code as u8);
            code += 1;
        }
        table
    }

    /// The byte for a number of −1 to 1, rounded by 20 random bits.
    fn code(self, number: f32, random: u32) -> u8 {
        let magnitude = number.abs();
        // As an integer multiple of the smallest step, plus less than one of it, then cut: exact for the smallest ones.
        let floor = f32::from_bits((127 + 1 - self.top()) << 23);
        let noise = random & ((1 << CUT) - 1);
        let code = if magnitude < floor {
            let steps = magnitude / floor * 8.0;
            let low = steps as u32;
            low + u32::from((steps - low as f32) * (1 << CUT) as f32 > noise as f32)
        } else {
            // A carry out of the mantissa goes into the exponent, as it should.
            let bits = (magnitude.to_bits() + noise) >> CUT;
            bits - ((127 - self.top()) << 3)
        };
        // 1 is the largest.
        let code = (code.min(self.top() << 3)) as u8;
        match self {
            Self::Positive => code.max(u8::from(magnitude > 0.0)),
            Self::Signed if number < 0.0 && code > 0 => code | 0x80,
            Self::Signed => code,
        }
    }
}

static SIGNED: [f32; 256] = Form::Signed.table();
static POSITIVE: [f32; 256] = Form::Positive.table();

/// Reads the numbers of a block.
pub(super) fn read(form: Form, codes: &[u8], scale: f32, out: &mut [f32]) {
    let table = match form {
        Form::Signed => &SIGNED,
        Form::Positive => &POSITIVE,
    };
    for (out, code) in out.iter_mut().zip(codes) {
        *out = table[usize::from(*code)] * scale;
    }
}

/// Writes the numbers of a block; `key` and the place in the block decide how each is rounded.
pub(super) fn write(form: Form, numbers: &[f32], key: u64, codes: &mut [u8], scale: &mut f32) {
    *scale = numbers.iter().fold(0.0, |largest, number| largest.max(number.abs()));
    // Also where all are 0; and a scale too small to divide by stands for nothing worth keeping.
    let by = 1.0 / *scale;
    if !by.is_finite() {
        *scale = 0.0;
        codes.fill(0);
        return;
    }
    for (place, (code, number)) in codes.iter_mut().zip(numbers).enumerate() {
        *code = form.code(number * by, (hash(key, place as u64) >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_numbers_that_the_form_says() {
        for (form, code, value) in [
            (Form::Positive, 0, 0.0),
            (Form::Positive, 1, 0.5f32.powi(33)),
            (Form::Positive, 8, 0.5f32.powi(30)),
            (Form::Positive, 31 * 8, 1.0),
            (Form::Positive, 30 * 8 + 7, 0.9375),
            (Form::Signed, 1, 0.5f32.powi(17)),
            (Form::Signed, 15 * 8, 1.0),
            (Form::Signed, 0x80 | (15 * 8), -1.0),
            (Form::Signed, 0x80 | (14 * 8 + 4), -0.75),
        ] {
            assert_eq!(form.value(code), value, "{form:?} {code}");
        }
        for form in [Form::Positive, Form::Signed] {
            for code in 0..=(form.top() << 3) as u8 {
                assert!(
                    code == 0 || form.value(code) > form.value(code - 1),
                    "{form:?} {code} is not above the one before"
                );
                for random in [0, 77, u32::MAX] {
                    assert_eq!(form.code(form.value(code), random), code, "{form:?}: a value that there is stays");
                }
            }
        }
    }

    #[test]
    fn rounding_goes_to_a_neighbour_and_is_right_on_average() {
        for form in [Form::Positive, Form::Signed] {
            for number in [1.0, 0.99, 0.3, -0.3, 0.017, 1e-4, 3e-5, 1e-5, -2e-6, 1e-8, 3e-10] {
                if (form == Form::Positive && number < 0.0) || (form == Form::Signed && number < 1e-9 && number > 0.0) {
                    continue;
                }
                let draws = 40_000;
                let mut sum = 0.0;
                let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
                for place in 0..draws {
                    let value = form.value(form.code(number, (hash(9, place) >> 32) as u32));
                    sum += f64::from(value);
                    (low, high) = (low.min(value), high.max(value));
                }
                let (mean, number) = (sum / draws as f64, f64::from(number));
                let gap = f64::from(high - low);
                assert!(f64::from(low) <= number && number <= f64::from(high), "{form:?} {number}: {low} to {high}");
                let smallest = f64::from(form.value(1));
                assert!(gap <= 0.125 * number.abs() + smallest, "{form:?} {number}: {low} to {high}");
                assert!((mean - number).abs() <= 0.02 * gap + 1e-7 * number.abs(), "{form:?} {number}: mean {mean}");
            }
        }
        assert_eq!(Form::Positive.code(1e-30, 0), 1, "a second moment never becomes 0");
        assert_eq!(Form::Positive.code(0.0, u32::MAX), 0);
    }

    #[test]
    fn blocks_read_back() {
        let numbers: Vec<f32> = (0..BLOCK).map(|at| (at as f32 * 0.7).sin() * 3e-5).collect();
        let (mut codes, mut scale, mut again) = (vec![0; BLOCK], 0.0, vec![0.0; BLOCK]);
        write(Form::Signed, &numbers, 5, &mut codes, &mut scale);
        read(Form::Signed, &codes, scale, &mut again);
        for (one, other) in numbers.iter().zip(&again) {
            assert!((one - other).abs() <= 0.125 * one.abs() + 3e-10, "{one} {other}");
        }
        for nothing in [0.0, 1e-44] {
            write(Form::Positive, &[nothing; 3], 5, &mut codes[..3], &mut scale);
            read(Form::Positive, &codes[..3], scale, &mut again[..3]);
            assert_eq!(again[..3], [0.0; 3]);
        }
    }
}
