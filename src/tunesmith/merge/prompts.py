"""What folded and merged models are asked to be compared: a few texts in both languages, one of them code."""

PROMPTS = (
    "Who are you?",
    "What is the capital of France, and why is it famous?",
    "Write one sentence about rain in the mountains.",
    "你是谁？请用一句话介绍自己。",
    "这家酒店的早餐很好，房间也干净。这条评论是正面的还是负面的？",
    "def area(radius):",
)
