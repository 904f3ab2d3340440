//! Several writes to the index at the price of one.

use super::Index;

impl Index {
    /// Makes all writes of `work` one transaction.
    pub fn together<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        // Before it begins: what is begun on a file that was replaced is lost.
        self.follow();
        let begun = self.connection.execute_batch("BEGIN IMMEDIATE");
        let done = work(self);
        if let Err(error) = begun.and_then(|()| self.connection.execute_batch("COMMIT")) {
            // Left open it would keep all others out, and take no other write of ours.
            if !self.connection.is_autocommit() {
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            self.complain(&error);
        }
        done
    }
}
