//! How the sequences of an example make a matrix.

use super::super::loss::side;

/// The form of the examples of a run: constitutions are rows, responses columns, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One sequence.
    Alone,
    /// One row, whose first `each` responses are its own.
    Row { each: usize },
    /// A row for each constitution; its own responses are so many, constitution by constitution.
    Square { each: usize },
}

impl Form {
    /// Rows of the matrix that so many sequences make; `None`: they make none.
    pub(super) fn rows(self, cells: usize) -> Option<usize> {
        match self {
            Self::Alone => (cells == 1).then_some(1),
            Self::Row { each } => (cells > each).then_some(1),
            Self::Square { each } => side(cells, each),
        }
    }

    /// A row's own responses.
    pub(super) fn each(self) -> usize {
        match self {
            Self::Alone => 1,
            Self::Row { each } | Self::Square { each } => each,
        }
    }

    /// Whether a sequence holds a response under its own constitution.
    pub(super) fn is_own(self, cell: usize, cells: usize) -> bool {
        let columns = cells / self.rows(cells).unwrap_or(1);
        cell % columns / self.each() == cell / columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cells() {
        let of = |form: Form, cells| (0..cells).filter(|cell| form.is_own(*cell, cells)).collect::<Vec<_>>();
        let square = Form::Square { each: 1 };
        assert_eq!((of(Form::Alone, 1), of(square, 4), of(square, 9)), (vec![0], vec![0, 3], vec![0, 4, 8]));
        assert_eq!(of(Form::Square { each: 2 }, 8), [0, 1, 6, 7]);
        assert_eq!((of(Form::Row { each: 1 }, 3), of(Form::Row { each: 2 }, 4)), (vec![0], vec![0, 1]));
    }

    #[test]
    fn what_makes_no_matrix() {
        let square = |each| Form::Square { each };
        assert_eq!([square(1), square(2), square(3)].map(|form| form.rows(8)), [None, Some(2), None]);
        assert_eq!([1, 3, 4].map(|cells| square(1).rows(cells)), [None, None, Some(2)]);
        assert_eq!([1, 2, 3].map(|cells| Form::Row { each: 1 }.rows(cells)), [None, Some(1), Some(1)]);
        assert_eq!((Form::Alone.rows(1), Form::Alone.rows(4)), (Some(1), None));
    }
}
