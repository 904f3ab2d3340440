//! What a node's name says: which node it is, in which iteration, in which cell of a matrix.

/// The parts of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name<'a> {
    /// What it is called in the pipeline file.
    pub base: &'a str,
    /// The cell, with its brackets; empty if there is no matrix.
    pub cell: &'a str,
    /// The iteration, if it is of the loop.
    pub iteration: Option<u64>,
}

impl<'a> Name<'a> {
    /// Takes a name apart.
    pub fn of(name: &'a str) -> Self {
        let (rest, cell) = name.split_at(name.find('[').unwrap_or(name.len()));
        match rest.rsplit_once('@').and_then(|(base, number)| Some((base, number.parse().ok()?))) {
            Some((base, iteration)) => Self { base, cell, iteration: Some(iteration) },
            None => Self { base: rest, cell, iteration: None },
        }
    }

    /// The name without the iteration.
    pub fn family(&self) -> String {
        format!("{}{}", self.base, self.cell)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_up_to_three_parts() {
        let name = |text| {
            let name = Name::of(text);
            (name.base, name.cell, name.iteration)
        };
        assert_eq!(name("finetune@12[lr=1e-7,seed=0]"), ("finetune", "[lr=1e-7,seed=0]", Some(12)));
        assert_eq!(name("base"), ("base", "", None));
        assert_eq!(name("a@b[x=@1]"), ("a@b", "[x=@1]", None));
        assert_eq!(Name::of("finetune@12[lr=1]").family(), "finetune[lr=1]");
    }
}
