//! The one loop in which nearly all time is spent: a few rows times a panel of a few columns.
//!
//! Each number of the product is one chain of fused multiply-adds over the depth, from first to last. That holds for
//! every number of rows and columns and for both widths of registers, so a row's result does not depend on which rows
//! it is computed with, to the bit.

use super::simd::Level;

/// Rows of a tile at most.
pub(super) const ROWS: usize = 8;
/// Columns of a tile at most, and of a panel.
pub(super) const COLUMNS: usize = 32;
/// Columns are read in multiples of this.
const HALF: usize = 16;

/// A matrix whose rows and columns are anywhere, for the left side.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub(super) values: &'a [f32],
    /// From one row to the next.
    pub(super) row: usize,
    /// From one column to the next.
    pub(super) column: usize,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// Nothing: c = a · b.
    Nothing,
    /// What is there: c = c + a · b.
    Sum,
    /// What is there, as the chain's first number: as if a and b began earlier and c held what came of that.
    Chain,
}

/// c = a · b, or c += a · b if `add`, see [`tile_to`].
#[expect(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn tile(
    level: Level,
    shape: (usize, usize, usize),
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
    add: bool,
) {
    tile_to(level, shape, a, b, b_row, c, c_row, if add { To::Sum } else { To::Nothing });
}

/// The product of a and b, added to what `to` says.
///
/// a is (rows, depth) with 1 to 8 rows; b is (depth, columns) with 1 to 32 columns, its rows `b_row` apart and readable
/// up to the next multiple of 16 columns; c is (rows, columns), its rows `c_row` apart.
#[expect(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(super) fn tile_to(
    level: Level,
    (rows, depth, columns): (usize, usize, usize),
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
    to: To,
) {
    assert!((1..=ROWS).contains(&rows) && (1..=COLUMNS).contains(&columns), "a tile of {rows} x {columns}");
    assert!((rows - 1) * c_row + columns <= c.len(), "c is too short");
    if depth == 0 {
        if to == To::Nothing {
            (0..rows).for_each(|row| c[row * c_row..][..columns].fill(0.0));
        }
        return;
    }
    let read = columns.next_multiple_of(HALF);
    assert!((rows - 1) * a.row + (depth - 1) * a.column < a.values.len(), "a is too short");
    assert!((depth - 1) * b_row + read <= b.len(), "b is too short");
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => {
            #[expect(unsafe_code, reason = "the compiler does not keep the sums in registers by itself")]
            // SAFETY: the level says that the processor has AVX-512; the lengths were just checked.
            unsafe {
                x86::tile_avx512((rows, depth, columns), a, b.as_ptr(), b_row, c.as_mut_ptr(), c_row, to);
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            #[expect(unsafe_code, reason = "the compiler does not keep the sums in registers by itself")]
            // SAFETY: the level says that the processor has AVX2 and FMA; the lengths were just checked.
            unsafe {
                x86::tile_avx2((rows, depth, columns), a, b.as_ptr(), b_row, c.as_mut_ptr(), c_row, to);
            }
        }
        _ => generic((rows, depth, columns), a, b, b_row, c, c_row, to),
    }
}

/// a · b + c, fused where the target has that as an instruction; elsewhere it would be a slow call.
#[inline]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

fn generic(
    (rows, depth, columns): (usize, usize, usize),
    a: Strided<'_>,
    b: &[f32],
    b_row: usize,
    c: &mut [f32],
    c_row: usize,
    to: To,
) {
    for row in 0..rows {
        let out = &mut c[row * c_row..][..columns];
        for (start, out) in (0..).step_by(HALF).zip(out.chunks_mut(HALF)) {
            let mut sums = [0.0; HALF];
            if to == To::Chain {
                sums[..out.len()].copy_from_slice(out);
            }
            for step in 0..depth {
                let factor = a.values[row * a.row + step * a.column];
                let line: &[f32; HALF] = b[step * b_row + start..][..HALF].try_into().expect("it has that length");
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum = multiply_add(factor, *value, *sum);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = if to == To::Sum { *out + sum } else { sum };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the compiler does not keep the sums in registers by itself")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps,
        _mm512_setzero_ps,
    };

    use super::{HALF, Strided, To};

    /// SAFETY: as for [`super::tile`], with the processor's features and all lengths checked.
    pub(super) unsafe fn tile_avx512(
        (rows, depth, columns): (usize, usize, usize),
        a: Strided<'_>,
        b: *const f32,
        b_row: usize,
        c: *mut f32,
        c_row: usize,
        to: To,
    ) {
        macro_rules! of_rows {
            ($($rows:literal)*) => {
                match (rows, columns > HALF) {
                    $(($rows, false) => avx512::<$rows, 1>(depth, columns, a, b, b_row, c, c_row, to),
                    ($rows, true) => avx512::<$rows, 2>(depth, columns, a, b, b_row, c, c_row, to),)*
                    _ => unreachable!("a tile has 1 to 8 rows"),
                }
            };
        }
        // SAFETY: the caller's.
        unsafe { of_rows!(1 2 3 4 5 6 7 8) }
    }

    #[expect(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const ROWS: usize, const VECTORS: usize>(
        depth: usize,
        columns: usize,
        a: Strided<'_>,
        b: *const f32,
        b_row: usize,
        c: *mut f32,
        c_row: usize,
        to: To,
    ) {
        let left = a.values.as_ptr();
        let mask = |vector: usize| u16::MAX >> (HALF - (columns - vector * HALF).min(HALF));
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        if to == To::Chain {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: c has ROWS rows of `columns`, and the mask leaves out what is beyond.
                    *sum = unsafe { _mm512_maskz_loadu_ps(mask(vector), c.add(row * c_row + vector * HALF)) };
                }
            }
        }
        for step in 0..depth {
            let mut line = [_mm512_setzero_ps(); VECTORS];
            for (vector, line) in line.iter_mut().enumerate() {
                // SAFETY: b has `depth` rows, readable to a multiple of 16 columns.
                *line = unsafe { _mm512_loadu_ps(b.add(step * b_row + vector * HALF)) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a has ROWS rows and `depth` columns.
                let factor = _mm512_set1_ps(unsafe { *left.add(row * a.row + step * a.column) });
                for (sum, line) in sums.iter_mut().zip(line) {
                    *sum = _mm512_fmadd_ps(factor, line, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (vector, mut sum) in sums.into_iter().enumerate() {
                let mask = mask(vector);
                // SAFETY: c has ROWS rows of `columns`, and the mask leaves out what is beyond.
                unsafe {
                    let out = c.add(row * c_row + vector * HALF);
                    if to == To::Sum {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
                    }
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }

    /// SAFETY: as for [`super::tile`], with the processor's features and all lengths checked.
    pub(super) unsafe fn tile_avx2(
        (rows, depth, columns): (usize, usize, usize),
        a: Strided<'_>,
        b: *const f32,
        b_row: usize,
        c: *mut f32,
        c_row: usize,
        to: To,
    ) {
        // Four rows of sixteen columns are eight sums, which with b and a fit the sixteen registers.
        for start in (0..rows).step_by(4) {
            let a = Strided { values: &a.values[start * a.row..], ..a };
            for from in (0..columns).step_by(HALF) {
                let here = (columns - from).min(HALF);
                // SAFETY: the caller's; these are parts of its matrices.
                unsafe {
                    let (b, c) = (b.add(from), c.add(start * c_row + from));
                    match rows - start {
                        1 => avx2::<1>(depth, here, a, b, b_row, c, c_row, to),
                        2 => avx2::<2>(depth, here, a, b, b_row, c, c_row, to),
                        3 => avx2::<3>(depth, here, a, b, b_row, c, c_row, to),
                        _ => avx2::<4>(depth, here, a, b, b_row, c, c_row, to),
                    }
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "three matrices and their shapes")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize>(
        depth: usize,
        columns: usize,
        a: Strided<'_>,
        b: *const f32,
        b_row: usize,
        c: *mut f32,
        c_row: usize,
        to: To,
    ) {
        let left = a.values.as_ptr();
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        if to == To::Chain {
            for (row, sums) in sums.iter_mut().enumerate() {
                let mut whole = [0.0; HALF];
                // SAFETY: c has ROWS rows of `columns`, at most sixteen here.
                let before = unsafe { std::slice::from_raw_parts(c.add(row * c_row), columns) };
                whole[..columns].copy_from_slice(before);
                // SAFETY: it has sixteen numbers.
                *sums = unsafe { [_mm256_loadu_ps(whole.as_ptr()), _mm256_loadu_ps(whole.as_ptr().add(8))] };
            }
        }
        for step in 0..depth {
            // SAFETY: b has `depth` rows, readable to a multiple of 16 columns.
            let line = unsafe { [_mm256_loadu_ps(b.add(step * b_row)), _mm256_loadu_ps(b.add(step * b_row + 8))] };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: a has ROWS rows and `depth` columns.
                let factor = _mm256_set1_ps(unsafe { *left.add(row * a.row + step * a.column) });
                for (sum, line) in sums.iter_mut().zip(line) {
                    *sum = _mm256_fmadd_ps(factor, line, *sum);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            let mut whole = [0.0; HALF];
            // SAFETY: it has sixteen numbers.
            unsafe {
                _mm256_storeu_ps(whole.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(whole.as_mut_ptr().add(8), sums[1]);
            }
            // SAFETY: c has ROWS rows of `columns`.
            let out = unsafe { std::slice::from_raw_parts_mut(c.add(row * c_row), columns) };
            for (out, sum) in out.iter_mut().zip(whole) {
                *out = if to == To::Sum { *out + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::level;
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn all_shapes_and_levels_equal_the_product() {
        let (a, b) = (numbers(8 * 70, 1), numbers(70 * 40 + 40, 2));
        for rows in 1..=8 {
            for columns in [1, 7, 15, 16, 17, 31, 32] {
                for depth in [0, 1, 5, 70] {
                    for (row, column) in [(70, 1), (1, 8)] {
                        let a = Strided { values: &a, row, column };
                        let mut of_levels = Vec::new();
                        for tried in [Level::Generic, Level::Avx2, Level::Avx512] {
                            if tried > level() {
                                continue;
                            }
                            let mut c = numbers(8 * 35, 3);
                            let before = c.clone();
                            tile(tried, (rows, depth, columns), a, &b, 40, &mut c, 35, true);
                            for at in 0..8 * 35 {
                                let (i, j) = (at / 35, at % 35);
                                let product: f64 = (0..depth)
                                    .map(|p| f64::from(a.values[i * row + p * column]) * f64::from(b[p * 40 + j]))
                                    .sum();
                                let inside = i < rows && j < columns;
                                let wanted = f64::from(before[at]) + if inside { product } else { 0.0 };
                                assert!((f64::from(c[at]) - wanted).abs() < 1e-5, "{tried:?} {rows}x{depth}x{columns}");
                            }
                            let mut whole = vec![0.0; 8 * 35];
                            tile(tried, (rows, depth, columns), a, &b, 40, &mut whole, 35, false);
                            for first in [0, depth.min(1), depth / 2, depth] {
                                let (mut parts, rest) = (vec![0.0; 8 * 35], depth - first);
                                tile(tried, (rows, first, columns), a, &b, 40, &mut parts, 35, false);
                                let a = Strided { values: &a.values[first * column..], ..a };
                                let b = &b[first * 40..];
                                tile_to(tried, (rows, rest, columns), a, b, 40, &mut parts, 35, To::Chain);
                                assert_eq!(parts, whole, "a chain in two parts is one chain");
                            }
                            of_levels.push(c);
                        }
                        if level() == Level::Avx512 {
                            assert_eq!(of_levels[1], of_levels[2], "AVX2 and AVX-512 give the same bits");
                        }
                    }
                }
            }
        }
    }
}
