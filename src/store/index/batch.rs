//! Several writes to the index at the price of one.

use super::Index;

impl Index {
    /// Makes all writes of `work` one transaction.
    pub fn together<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let done = work(self);
        if let Err(error) = begun.and_then(|()| self.connection.execute_batch("COMMIT")) {
            self.complain(&error);
        }
        done
    }
}
