//! Products of matrices, made of tiles.

use std::sync::Arc;

use rayon::prelude::*;

use super::gradients::Columns;
use super::pool::{Buffer, Pool};
use super::simd::level;
use super::tile::{COLUMNS, ROWS, Strided, tile};

/// Products of fewer multiplications are not worth a second thread.
const WORTH_A_THREAD: usize = 1 << 18;

/// The right side of products: its columns in panels of 32, each row after row, filled up with zeros.
#[derive(Debug)]
pub(super) struct Panels {
    depth: usize,
    columns: usize,
    values: Buffer, // (panels, depth, 32)
}

impl Panels {
    fn new(pool: &Arc<Pool>, depth: usize, columns: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let panels = columns.div_ceil(COLUMNS);
        let mut values = pool.take(panels * depth * COLUMNS);
        let size = (depth * COLUMNS).max(1);
        if values.len() < WORTH_A_THREAD {
            values.chunks_mut(size).enumerate().for_each(|(panel, values)| fill(panel, values));
        } else {
            values.par_chunks_mut(size).enumerate().for_each(|(panel, values)| fill(panel, values));
        }
        Self { depth, columns, values }
    }

    /// The transpose of matrices one above the other, each (rows, depth): a linear layer's right side.
    pub(super) fn transposed(pool: &Arc<Pool>, matrices: &[&[f32]], depth: usize) -> Self {
        let rows: Vec<&[f32]> = matrices.iter().flat_map(|matrix| matrix.chunks_exact(depth)).collect();
        Self::new(pool, depth, rows.len(), |panel, values| {
            let rows = &rows[panel * COLUMNS..rows.len().min((panel + 1) * COLUMNS)];
            if rows.len() < COLUMNS {
                values.fill(0.0);
            }
            for (column, row) in rows.iter().enumerate() {
                for (step, value) in row.iter().enumerate() {
                    values[step * COLUMNS + column] = *value;
                }
            }
        })
    }

    /// Matrices one above the other, each (rows, columns), as they are.
    pub(super) fn stacked(pool: &Arc<Pool>, matrices: &[&[f32]], columns: usize) -> Self {
        let rows: Vec<&[f32]> = matrices.iter().flat_map(|matrix| matrix.chunks_exact(columns)).collect();
        Self::new(pool, rows.len(), columns, |panel, values| {
            let from = panel * COLUMNS;
            let width = (columns - from).min(COLUMNS);
            for (line, row) in values.chunks_exact_mut(COLUMNS).zip(&rows) {
                line[..width].copy_from_slice(&row[from..from + width]);
                line[width..].fill(0.0);
            }
        })
    }

    /// Where their memory is from.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        self.values.pool()
    }

    /// Columns of the product.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// The columns of some panels of the product of some rows.
    fn multiply_panels(&self, a: &[f32], panels: std::ops::Range<usize>, c: &mut [f32], c_row: usize, add: bool) {
        let (level, rows) = (level(), a.len() / self.depth.max(1));
        let first = panels.start * COLUMNS;
        for panel in panels {
            let b = &self.values[panel * self.depth * COLUMNS..][..self.depth * COLUMNS];
            let from = panel * COLUMNS;
            let width = (self.columns - from).min(COLUMNS);
            for row in (0..rows).step_by(ROWS) {
                let height = (rows - row).min(ROWS);
                let a = Strided { values: &a[row * self.depth..], row: self.depth, column: 1 };
                let c = &mut c[row * c_row + from - first..];
                tile(level, (height, self.depth, width), a, b, COLUMNS, c, c_row, add);
            }
        }
    }

    /// c = a · self, or c += a · self if `add`, on this thread: a (rows, depth), c (rows, columns).
    pub(super) fn multiply(&self, a: &[f32], c: &mut [f32], add: bool) {
        self.multiply_panels(a, 0..self.columns.div_ceil(COLUMNS), c, self.columns, add);
    }

    /// As [`Self::multiply`], on several threads if it is worth it: for few rows and large matrices.
    pub(super) fn multiply_wide(&self, a: &[f32], c: &mut [f32], add: bool) {
        let panels = self.columns.div_ceil(COLUMNS);
        let rows = a.len() / self.depth.max(1);
        let threads = rayon::current_num_threads().min(panels);
        if threads < 2 || rows * self.depth * self.columns < WORTH_A_THREAD {
            return self.multiply(a, c, add);
        }
        let share = panels.div_ceil(threads);
        let parts: Vec<(usize, Vec<f32>)> = (0..threads)
            .into_par_iter()
            .map(|thread| {
                let mine = (thread * share).min(panels)..((thread + 1) * share).min(panels);
                let width = (mine.end * COLUMNS).min(self.columns).saturating_sub(mine.start * COLUMNS);
                let mut part = vec![0.0; rows * width];
                let from = mine.start * COLUMNS;
                self.multiply_panels(a, mine, &mut part, width, false);
                (from, part)
            })
            .collect();
        for (from, part) in parts.iter().filter(|(_, part)| !part.is_empty()) {
            let width = part.len() / rows;
            for (part, c) in part.chunks_exact(width).zip(c.chunks_exact_mut(self.columns)) {
                let c = &mut c[*from..from + width];
                if add {
                    c.iter_mut().zip(part).for_each(|(c, part)| *c += *part);
                } else {
                    c.copy_from_slice(part);
                }
            }
        }
    }
}

/// Rows of a sum over many rows that are summed in one chain.
const CHAIN: usize = 256;
/// Rows of a result that one task computes.
const TASK_ROWS: usize = 32;

/// The gradient of a linear layer's weight: c = gᵀ · x, or c += gᵀ · x, for g (N, rows) and x (N, columns).
///
/// The sum over N runs in chains of 256 that are added in order, whatever the number of threads.
pub(super) fn transposed_product(x: &Panels, g: Columns<'_>, c: &mut [f32], add: bool) {
    let (n, columns) = (x.depth, x.columns);
    if n == 0 {
        if !add {
            c.fill(0.0);
        }
        return;
    }
    let level = level();
    c.par_chunks_mut(TASK_ROWS * columns).enumerate().for_each(|(task, c)| {
        let rows_here = c.len() / columns;
        for start in (0..n).step_by(CHAIN) {
            let depth = (n - start).min(CHAIN);
            for panel in 0..columns.div_ceil(COLUMNS) {
                let b = &x.values[(panel * n + start) * COLUMNS..][..depth * COLUMNS];
                let width = (columns - panel * COLUMNS).min(COLUMNS);
                for row in (0..rows_here).step_by(ROWS) {
                    let height = (rows_here - row).min(ROWS);
                    let from = start * g.row + g.from + task * TASK_ROWS + row;
                    let a = Strided { values: &g.values[from..], row: 1, column: g.row };
                    let c = &mut c[row * columns + panel * COLUMNS..];
                    tile(level, (height, depth, width), a, b, COLUMNS, c, columns, add || start > 0);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    fn product(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
        let at = |i: usize, j: usize| (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum();
        (0..m * n).map(|index| at(index / n, index % n)).collect()
    }

    fn close(found: &[f32], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        let worst = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "{worst}");
    }

    #[test]
    fn products_equal_the_definition() {
        let pool = Arc::new(Pool::default());
        for (m, k, n) in [(1, 3, 5), (9, 40, 70), (33, 64, 96), (5, 300, 700)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let wanted = product(&a, &b, (m, k, n));
            let stacked = Panels::stacked(&pool, &[&b[..n], &b[n..]], n);
            let transpose: Vec<f32> = (0..n * k).map(|at| b[at % k * n + at / k]).collect();
            let transposed = Panels::transposed(&pool, &[&transpose[..2 * k], &transpose[2 * k..]], k);
            for panels in [stacked, transposed] {
                let mut c = vec![9.0; m * n];
                panels.multiply(&a, &mut c, false);
                close(&c, &wanted);
                let mut wide = vec![0.0; m * n];
                panels.multiply_wide(&a, &mut wide, true);
                assert_eq!(c, wide, "the same bits on several threads");
            }
        }
    }

    #[test]
    fn transposed_products_equal_the_definition() {
        let pool = Arc::new(Pool::default());
        for (n, rows, columns) in [(1, 3, 5), (600, 40, 70), (256, 8, 32)] {
            let (g, x) = (numbers(n * rows, 1), numbers(n * columns, 2));
            let transpose: Vec<f32> = (0..rows * n).map(|at| g[at % n * rows + at / n]).collect();
            let wanted = product(&transpose, &x, (rows, n, columns));
            let mut c = vec![1.0; rows * columns];
            let x = Panels::stacked(&pool, &[&x], columns);
            transposed_product(&x, Columns { values: &g, row: rows, from: 0, count: rows }, &mut c, false);
            close(&c, &wanted);
            // Some of the rows, and to what is there.
            let some = Columns { values: &g, row: rows, from: 2, count: rows - 2 };
            transposed_product(&x, some, &mut c[2 * columns..], true);
            close(&c[..2 * columns], &wanted[..2 * columns]);
            close(&c[2 * columns..], &wanted[2 * columns..].iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        }
    }
}
