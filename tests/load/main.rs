//! Reading weights: against files written by other programs.

mod golden;
