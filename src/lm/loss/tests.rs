use candle_core::{Device, Var};

use super::*;

/// Loss and gradient of one matrix.
fn graded(cells: &[f64], sides: Sides) -> (f64, Vec<f64>) {
    graded_of(cells, 1, sides)
}

/// The same with `each` responses to a constitution.
fn graded_of(cells: &[f64], each: usize, sides: Sides) -> (f64, Vec<f64>) {
    let count = side(cells.len(), each).expect("a matrix");
    let matrix = Var::from_slice(cells, (1, count, count * each), &Device::Cpu).expect("fits");
    let loss = contrast(&matrix, sides).expect("computes");
    let gradients = loss.backward().expect("has a backward");
    let gradient = gradients.get(&matrix).expect("a gradient reaches the matrix");
    let gradient = gradient.flatten_all().and_then(|flat| flat.to_vec1()).expect("f64");
    (loss.to_scalar().expect("scalar"), gradient)
}

fn assert_near(found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (one, other) in found.iter().zip(wanted) {
        assert!((one - other).abs() <= tolerance, "{found:?} is not {wanted:?}");
    }
}

/// Matrix, `loss_row`, `loss_column`, loss, gradient of the loss.
type Golden = (&'static [f64], f64, f64, f64, &'static [f64]);

/// Computed apart from this code, in Python.
const GOLDEN: [Golden; 3] = [
    (&[-0.50, -0.60, -0.58, -0.55], 0.661_328, 0.661_203, 0.661_266, &[-0.238_758, 0.240_631, 0.243_128, -0.245_001]),
    (&[-0.4, -1.2, -0.9, -0.7], 0.484_620, 0.474_077, 0.479_348, &[-0.171_892, 0.171_892, 0.206_927, -0.206_927]),
    (
        &[-1.0, -2.0, -3.0, -2.5, -0.5, -1.5, -3.0, -2.0, -0.25],
        0.342_823,
        0.325_254,
        0.334_038,
        &[-0.099_772, 0.066_502, 0.022_895, 0.042_380, -0.107_220, 0.076_148, 0.025_212, 0.049_114, -0.075_258],
    ),
];

#[test]
fn golden_losses_and_gradients() {
    for (matrix, row, column, both, gradient) in GOLDEN {
        assert_near(&[graded(matrix, Sides::Row).0], &[row], 5.1e-7);
        assert_near(&[graded(matrix, Sides::Column).0], &[column], 5.1e-7);
        let found = graded(matrix, Sides::Both);
        assert_near(&[found.0], &[both], 5.1e-7);
        assert_near(&found.1, gradient, 5.1e-7);
        let figures = Contrast::of_sums(matrix).expect("sound");
        assert_near(&[figures.loss_row, figures.loss_column], &[row, column], 5.1e-7);
    }
}

#[test]
fn golden_bound_and_gap_of_summed_logprobs() {
    let figures = Contrast::of_sums(&[-40.0, -75.0, -46.0, -70.0]).expect("sound");
    assert_near(&[figures.gap, figures.bound], &[2.75, 0.688_552], 5e-7);
    assert!(figures.bound < 2f64.ln());
    // Row 0 prefers its own response, row 1 the other one; both columns are the right way round.
    assert_eq!((figures.accuracy_row, figures.accuracy_column), (0.5, 1.0));
}

#[test]
fn gradient_is_that_of_finite_differences() {
    for sides in [Sides::Both, Sides::Row, Sides::Column] {
        for (matrix, ..) in GOLDEN {
            let (_, gradient) = graded(matrix, sides);
            let slopes: Vec<f64> = (0..matrix.len())
                .map(|cell| {
                    let moved = |by: f64| {
                        let mut matrix = matrix.to_vec();
                        matrix[cell] += by;
                        graded(&matrix, sides).0
                    };
                    (moved(1e-5) - moved(-1e-5)) / 2e-5
                })
                .collect();
            assert_near(&gradient, &slopes, 1e-9);
        }
    }
}

#[test]
fn uniform_matrix_costs_ln_c_and_pulls_no_row_or_column_as_a_whole() {
    for count in [2, 3, 4] {
        let (loss, gradient) = graded(&vec![-1.7; count * count], Sides::Both);
        assert_near(&[loss], &[(count as f64).ln()], 1e-12);
        for one in 0..count {
            assert_near(&[gradient[one * count..(one + 1) * count].iter().sum()], &[0.0], 1e-12);
            assert_near(&[gradient.iter().skip(one).step_by(count).sum()], &[0.0], 1e-12);
        }
        let figures = Contrast::of_sums(&vec![-1.7; count * count]).expect("sound");
        assert_near(&[figures.bound, figures.gap], &[0.0, 0.0], 1e-12);
        assert_near(&[figures.accuracy_row, figures.accuracy_column], &[1.0 / count as f64; 2], 1e-12);
    }
}

#[test]
fn order_of_constitutions_and_a_constant_change_nothing() {
    let (matrix, ..) = GOLDEN[2];
    let permuted: Vec<f64> = [2, 0, 1].iter().flat_map(|k| [2, 0, 1].iter().map(move |j| matrix[k * 3 + j])).collect();
    let shifted: Vec<f64> = matrix.iter().map(|cell| cell - 30.0).collect();
    for sides in [Sides::Both, Sides::Row, Sides::Column] {
        let loss = graded(matrix, sides).0;
        assert_near(&[graded(&permuted, sides).0, graded(&shifted, sides).0], &[loss, loss], 1e-12);
    }
}

#[test]
fn identical_responses_leave_the_row_side_still_and_pull_the_column_side_together() {
    // Columns are equal: the responses are the same text, so both cells of a row are one number and its gradient
    // is their sum.
    let matrix = [-0.4, -0.4, -0.9, -0.9];
    let by_constitution = |sides| {
        let (loss, gradient) = graded(&matrix, sides);
        (loss, [gradient[0] + gradient[1], gradient[2] + gradient[3]])
    };
    assert_near(&by_constitution(Sides::Row).1, &[0.0, 0.0], 1e-15);
    let (loss, [of_first_constitution, of_second_constitution]) = by_constitution(Sides::Column);
    assert_near(&[of_first_constitution], &[-of_second_constitution], 1e-12);
    // ½[sp(Δ) + sp(−Δ)] with Δ = ½: the likelier constitution is pushed down.
    let softplus = |x: f64| (1.0 + x.exp()).ln();
    assert_near(&[loss], &[0.5 * (softplus(0.5) + softplus(-0.5))], 1e-12);
    assert!(of_first_constitution > 0.0);
}

#[test]
fn several_queries_are_averaged() {
    let (one, other) = (GOLDEN[0].0, GOLDEN[1].0);
    let both: Vec<f64> = one.iter().chain(other).copied().collect();
    let matrix = Tensor::from_vec(both, (2, 2, 2), &Device::Cpu).expect("fits");
    let loss: f64 = contrast(&matrix, Sides::Both).and_then(|loss| Ok(loss.to_scalar()?)).expect("computes");
    assert_near(&[loss], &[f64::midpoint(GOLDEN[0].3, GOLDEN[1].3)], 1e-6);
    let figures: Vec<_> = [one, other].map(|matrix| Contrast::of_sums(matrix).expect("sound")).into();
    let mean = Contrast::mean(&figures).expect("two");
    assert_near(&[mean.gap], &[f64::midpoint(figures[0].gap, figures[1].gap)], 1e-12);
    assert!(Contrast::mean(&[]).is_none());
}

#[test]
fn bound_never_passes_its_ceiling_and_scores_do_not_move_it() {
    let sums = [-10.0, -900.0, -800.0, -20.0];
    let means = [-1.0, -9.0, -8.0, -2.0];
    let figures = Contrast::new(&means, &sums).expect("sound");
    assert_near(&[figures.bound], &[2f64.ln()], 1e-12);
    assert_near(&[figures.gap], &[f64::midpoint(395.0, 440.0)], 1e-9);
    assert_near(&[figures.loss_row], &[Contrast::of_sums(&means).expect("sound").loss_row], 1e-15);
}

#[test]
fn matrices_that_are_none_are_refused() {
    for cells in [&[-1.0][..], &[-1.0; 3], &[]] {
        assert!(matches!(Contrast::of_sums(cells), Err(LmError::Matrix { .. })), "{cells:?}");
    }
    let error = Contrast::of_sums(&[-1.0, f64::NAN, -1.0, -1.0]).expect_err("not a number");
    assert!(error.to_string().contains("row 0, column 1"), "{error}");
}

/// Computed apart from this code, in Python: C = 2, M = 2.
const ROW: f64 = 0.614_518_120_0;
const COLUMN: f64 = 0.611_875_277_9;
const SEVERAL: [f64; 8] = [-0.50, -0.62, -0.95, -0.70, -0.58, -0.80, -0.55, -0.66];

#[test]
fn several_responses_to_a_constitution() {
    for (sides, wanted) in [(Sides::Row, ROW), (Sides::Column, COLUMN), (Sides::Both, f64::midpoint(ROW, COLUMN))] {
        let (loss, gradient) = graded_of(&SEVERAL, 2, sides);
        assert_near(&[loss], &[wanted], 5e-9);
        for (cell, slope) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut cells = SEVERAL;
                cells[cell] += by;
                graded_of(&cells, 2, sides).0
            };
            assert_near(&[*slope], &[(moved(1e-5) - moved(-1e-5)) / 2e-5], 1e-9);
        }
        // Neither what comes first of a constitution nor a constant matters.
        let swapped = [1, 0, 3, 2, 5, 4, 7, 6].map(|cell: usize| SEVERAL[cell] - 3.0);
        assert_near(&[graded_of(&swapped, 2, sides).0], &[loss], 1e-12);
    }
    let figures = Contrast::with(&SEVERAL, &SEVERAL, 2).expect("sound");
    assert_near(&[figures.loss_row, figures.loss_column], &[ROW, COLUMN], 5e-9);
    assert_near(&[figures.bound], &[2f64.ln() - figures.loss_column], 1e-12);
    // The first two responses belong to the first constitution, and -0.55 of the others is the second one's largest.
    assert_eq!((figures.accuracy_row, figures.accuracy_column), (1.0, 1.0));
    assert!(Contrast::with(&SEVERAL, &SEVERAL, 3).is_err());
}

#[test]
fn a_response_of_each_twice_over_is_that_response_once() {
    let (one, ..) = GOLDEN[2];
    let twice: Vec<f64> = one.iter().flat_map(|cell| [*cell, *cell]).collect();
    for sides in [Sides::Row, Sides::Column, Sides::Both] {
        let (loss, gradient) = graded(one, sides);
        let (again, of_each) = graded_of(&twice, 2, sides);
        assert_near(&[again], &[loss], 1e-12);
        let sums: Vec<f64> = of_each.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        assert_near(&sums, &gradient, 1e-12);
    }
    let (first, second) = (Contrast::of_sums(one).expect("sound"), Contrast::with(&twice, &twice, 2).expect("sound"));
    assert_near(&[second.bound, second.gap, second.loss_row], &[first.bound, first.gap, first.loss_row], 1e-12);
    let uniform = graded_of(&[-1.7; 27], 3, Sides::Both).0;
    assert_near(&[uniform], &[3f64.ln()], 1e-12);
}

#[test]
fn columns_that_belong_to_no_row_are_refused() {
    let matrix = Tensor::zeros((1, 2, 3), candle_core::DType::F64, &Device::Cpu).expect("makes");
    assert!(matches!(contrast(&matrix, Sides::Both), Err(LmError::Matrix { .. })));
}
