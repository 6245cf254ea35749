"""What people write first: the openai client, gather and a semaphore, nothing stored."""

import asyncio
import json
import sys
from pathlib import Path

from openai import AsyncOpenAI

RUBRIC = "Is this a match? Answer yes or no."


async def main(url: str, file: str, concurrency: int) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=5)
    admission = asyncio.Semaphore(concurrency)

    async def ask(text: str) -> bool:
        async with admission:
            reply = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": f"{RUBRIC}\n\n{text}"}],
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=5,
            )
            return reply.choices[0].message.content == "yes"

    with Path(file).open() as lines:
        texts = [json.loads(line)["text"] for line in lines]
    verdicts = await asyncio.gather(*(ask(text) for text in texts))
    print(sum(verdicts))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
