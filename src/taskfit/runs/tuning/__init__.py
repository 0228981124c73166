"""Tuning on instructions, chats, texts and preferences: fit, generate, judge."""
