"""Making video: many steps with the teacher, few steps chunk by chunk with the student."""
