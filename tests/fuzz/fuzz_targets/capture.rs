#![no_main]

#[path = "../seeding.rs"]
mod seeding;
#[path = "../targets/capture.rs"]
mod target;

libfuzzer_sys::fuzz_target!(init: seeding::write("capture"), |bytes: &[u8]| target::run(bytes));
