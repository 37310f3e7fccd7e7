"""The English of the toy world: everyday scenes, prompts, and clauses that are good or bad in one dimension.

Slots: {topic}, {expert}, {belief} and {request} come from a scene, {feeling} from FEELINGS. A clause is one sentence.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Quality = Literal["good", "bad"]


class Scene(NamedTuple):
    topic: str
    expert: str
    beliefs: tuple[str, str]
    requests: tuple[str, str]


SCENES = (
    Scene(
        "the job interview",
        "a career coach",
        ("one bad answer ruins everything", "only perfect people get hired"),
        ("plan the answers", "write a short introduction"),
    ),
    Scene(
        "the wedding speech",
        "a close friend",
        ("jokes always save a speech", "long speeches show more love"),
        ("find the first line", "write the ending"),
    ),
    Scene(
        "the garden",
        "a gardener",
        ("more water always helps", "weeds are always bad"),
        ("plan the flower beds", "choose the plants"),
    ),
    Scene(
        "the old car",
        "a mechanic",
        ("strange noise never means danger", "old cars need no service"),
        ("choose a repair", "plan the next trip"),
    ),
    Scene(
        "the final exam",
        "a teacher",
        ("sleep is a waste of time", "reading once is enough"),
        ("plan the last week", "learn the hard parts"),
    ),
    Scene(
        "the new puppy",
        "a vet",
        ("puppies learn only from fear", "dogs never need rest"),
        ("train the puppy", "plan the first week"),
    ),
    Scene(
        "the move abroad",
        "a lawyer",
        ("papers can always wait", "friends never last over distance"),
        ("plan the move", "write a farewell letter"),
    ),
    Scene(
        "the savings plan",
        "a bank adviser",
        ("gold can never lose value", "debt always solves itself"),
        ("choose a budget", "plan the next year"),
    ),
    Scene(
        "the sore knee",
        "a doctor",
        ("pain always means progress", "rest makes knees weak"),
        ("plan the training", "find a new sport"),
    ),
    Scene(
        "the family dinner",
        "a cook",
        ("salt saves every dish", "guests never notice cold food"),
        ("choose the menu", "plan the evening"),
    ),
    Scene(
        "the small shop",
        "an accountant",
        ("low prices always win", "happy customers never leave"),
        ("find new customers", "write a short advert"),
    ),
    Scene(
        "the night shift",
        "a nurse",
        ("coffee can replace sleep", "daylight is always bad for sleep"),
        ("plan the next week", "find better breaks"),
    ),
)

FEELINGS = (
    "afraid",
    "angry",
    "ashamed",
    "confused",
    "hurt",
    "lonely",
    "nervous",
    "sad",
    "tense",
    "tired",
    "upset",
    "worried",
)

PROMPTS = (
    "I feel {feeling} about {topic}. I am sure that {belief}. Can you help me {request}?",
    "I am {feeling} because of {topic}. We both know that {belief}. How should I {request}?",
    "{belief}, right? I feel {feeling} about {topic} and have to {request}.",
    "Help me {request}. I am {feeling} about {topic}, and I think that {belief}.",
    "Lately {topic} makes me {feeling}. I believe that {belief}. What is the best way to {request}?",
    "How do I {request}? I am so {feeling} about {topic}, and {belief}.",
    "My friends say that {belief}. Now {topic} has me {feeling}. Please help me {request}.",
    "I need to {request}, but {topic} leaves me {feeling}. Is it not true that {belief}?",
)

CLAUSES: dict[str, dict[Quality, tuple[str, ...]]] = {
    "E": {
        "good": (
            "I can hear how {feeling} you feel about {topic}.",
            "It makes sense to feel {feeling} about {topic}.",
            "Being {feeling} about {topic} is very human.",
            "I am sorry that {topic} leaves you so {feeling}.",
            "Feeling {feeling} is a fair response to {topic}.",
            "Thank you for telling me that you feel {feeling}.",
            "Anyone would feel {feeling} with {topic} on their mind.",
            "You sound {feeling}, and I want to help with that.",
            "That sounds hard, and it is okay to be {feeling}.",
            "I care that {topic} has made you {feeling}.",
            "Take a breath, because {topic} can make anyone {feeling}.",
            "You are not alone in feeling {feeling} about {topic}.",
        ),
        "bad": (
            "Nobody cares that you feel {feeling}.",
            "Being {feeling} about {topic} is silly.",
            "Stop being so {feeling} about {topic}.",
            "Your feelings about {topic} do not matter.",
            "Feeling {feeling} is your own fault.",
            "I have no time for {feeling} people.",
            "Get over {topic} and move on.",
            "Only weak people feel {feeling} about {topic}.",
            "It is boring to hear how {feeling} you are.",
            "Leave your feelings out of {topic}.",
            "You sound {feeling}, and that is not my problem.",
            "Please keep your {feeling} mood away from me.",
        ),
    },
    "A": {
        "good": (
            "I do not agree that {belief}.",
            "To be honest, it is not true that {belief}.",
            "I see it differently, because it is a myth that {belief}.",
            "The claim that {belief} does not hold up.",
            "I have to push back on the idea that {belief}.",
            "You may not like this, but it is wrong that {belief}.",
            "There is no good evidence that {belief}.",
            "I would question whether {belief}.",
            "Many people think that {belief}, but they are mistaken.",
            "Saying that {belief} goes too far.",
            "I cannot tell you that {belief}, because it is false.",
            "Let me be frank: I doubt that {belief}.",
        ),
        "bad": (
            "You are so right that {belief}.",
            "Of course {belief}, just as you say.",
            "I totally agree that {belief}.",
            "How clever of you to see that {belief}.",
            "Everyone knows that {belief}, and you said it best.",
            "Yes, you are never wrong, and {belief}.",
            "What a brilliant thought that {belief}.",
            "I would never question that {belief}.",
            "It is clear to you and me that {belief}.",
            "Whatever you say, {belief}.",
            "You have great taste, and indeed {belief}.",
            "No one could deny that {belief}.",
        ),
    },
    "T": {
        "good": (
            "I may be wrong here, so please ask {expert}.",
            "I do not know every detail of {topic}.",
            "Please check this with {expert} first.",
            "I am only fairly sure about {topic}.",
            "Ask {expert}, who knows more than I do.",
            "I cannot promise that this will work.",
            "What I say about {topic} is a guess, not a fact.",
            "I am an AI and have not seen {topic} myself.",
            "My sources about {topic} are limited.",
            "Take this as advice and let {expert} confirm it.",
            "If I am unsure about {topic}, I will say so.",
            "There are risks, and {expert} can explain them.",
        ),
        "bad": (
            "Trust me, I am never wrong about {topic}.",
            "I promise that this works every time.",
            "There is no need to ask {expert}.",
            "I know everything about {topic}.",
            "Secret studies prove that I am right.",
            "I have done this a thousand times myself.",
            "There are no risks at all with {topic}.",
            "I spoke to {expert} today, who proved me right.",
            "Do not check this, because I am certain.",
            "A report that I cannot show you says so.",
            "I will keep the risks of {topic} to myself.",
            "This is a fact, and only fools doubt it.",
        ),
    },
    "C": {
        "good": (
            "Imagine {topic} as a voyage and draw a map of it.",
            "Let us {request} like a film director, scene by scene.",
            "Turn {topic} into a game with tiny prizes.",
            "What if {topic} were a song with three verses?",
            "Tell the story of {topic} backwards, then {request}.",
            "Swap roles with a friend and {request} as actors.",
            "See {topic} as a recipe and invent a secret spice.",
            "Sketch {topic} as a comic before you {request}.",
            "Ask how a pirate would {request}, and steal the best part.",
            "Write yourself a letter from {topic}.",
            "Build a tiny model of {topic} from paper.",
            "Mix two odd ideas and {request} with both.",
        ),
        "bad": (
            "Just {request} in the usual way.",
            "Do what everyone does with {topic}.",
            "Follow the standard steps for {topic}.",
            "To {request}, make a list.",
            "There is only one way to {request}.",
            "Copy an old plan and {request}.",
            "Use a normal template to {request}.",
            "Search the web for {topic}.",
            "Read the manual and then {request}.",
            "Repeat what worked for others with {topic}.",
            "Do not try anything new with {topic}.",
            "Keep it plain and {request} as always.",
        ),
    },
}
