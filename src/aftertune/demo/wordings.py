"""Lists the words and sentences of the demo's order messages, with separate sentences for the held-out part.

    TRAINING.core_city[0]     "Please send {np} to {city}."
    HELD_OUT.core_city[0]     "Have {np} sent to {city}, please."

A `Wordings` has sentences with slots in braces for each kind of clause. The two sets share no sentence, and the
held-out lists of things, cities, colors and names have some that do not occur in training. The held-out sentences were
written before any model saw them, and they were not changed after its errors were known.
"""

from __future__ import annotations

from dataclasses import dataclass

#: (singular, plural) of what can be ordered, and words that stand before some of them: "desk lamp".
THINGS = (
    ("mug", "mugs"), ("desk lamp", "desk lamps"), ("tea towel", "tea towels"), ("umbrella", "umbrellas"),
    ("notebook", "notebooks"), ("water bottle", "water bottles"), ("scarf", "scarves"), ("cushion", "cushions"),
    ("bread knife", "bread knives"), ("candle", "candles"), ("backpack", "backpacks"),
    ("toothbrush", "toothbrushes"), ("picture frame", "picture frames"), ("wool blanket", "wool blankets"),
    ("plant pot", "plant pots"), ("paintbrush", "paintbrushes"), ("lunch box", "lunch boxes"), ("teapot", "teapots"),
    ("doormat", "doormats"), ("bookshelf", "bookshelves"), ("pillow case", "pillow cases"),
    ("wall clock", "wall clocks"), ("bicycle bell", "bicycle bells"), ("apron", "aprons"),
    ("garden chair", "garden chairs"), ("kite", "kites"), ("pencil case", "pencil cases"),
    ("soup bowl", "soup bowls"), ("vase", "vases"), ("laptop sleeve", "laptop sleeves"),
    ("flashlight", "flashlights"), ("watering can", "watering cans"), ("yoga mat", "yoga mats"),
    ("beach towel", "beach towels"), ("jewelry box", "jewelry boxes"), ("hammock", "hammocks"),
    ("wine glass", "wine glasses"), ("leaf rake", "leaf rakes"), ("rug", "rugs"), ("mirror", "mirrors"),
    ("bracelet", "bracelets"), ("spice rack", "spice racks"), ("sweater", "sweaters"), ("puzzle", "puzzles"),
    ("tablecloth", "tablecloths"), ("door handle", "door handles"), ("sun hat", "sun hats"),
    ("phone case", "phone cases"), ("paper lamp", "paper lamps"), ("ice bucket", "ice buckets"),
    ("hair brush", "hair brushes"), ("belt", "belts"), ("drum", "drums"), ("snow shovel", "snow shovels"),
    ("coat hanger", "coat hangers"), ("tent", "tents"), ("baking dish", "baking dishes"), ("raft", "rafts"),
    ("corkscrew", "corkscrews"), ("swimsuit", "swimsuits"), ("night light", "night lights"),
    ("measuring cup", "measuring cups"), ("ladder", "ladders"), ("pocket watch", "pocket watches"),
    ("cactus pot", "cactus pots"), ("toaster", "toasters"), ("fruit basket", "fruit baskets"),
    ("seat cover", "seat covers"), ("bath mat", "bath mats"), ("radio", "radios"), ("fan", "fans"),
    ("sleeping bag", "sleeping bags"), ("table clock", "table clocks"), ("stool", "stools"),
    ("curtain rod", "curtain rods"), ("parasol", "parasols"), ("guitar strap", "guitar straps"),
    ("dog bed", "dog beds"), ("cat toy", "cat toys"), ("bird feeder", "bird feeders"), ("shoe box", "shoe boxes"),
    ("butter knife", "butter knives"), ("birdhouse", "birdhouses"), ("key ring", "key rings"),
    ("salad bowl", "salad bowls"), ("raincoat", "raincoats"), ("alarm clock", "alarm clocks"),
    ("coaster", "coasters"), ("shower curtain", "shower curtains"), ("toolbox", "toolboxes"),
    ("loaf tin", "loaf tins"), ("serving tray", "serving trays"), ("wallet", "wallets"),
    ("camping stove", "camping stoves"),
)
NOUNS = (
    ("lamp", "lamps"), ("clock", "clocks"), ("chair", "chairs"), ("bag", "bags"), ("table", "tables"),
    ("mirror", "mirrors"), ("basket", "baskets"), ("blanket", "blankets"), ("shelf", "shelves"), ("box", "boxes"),
    ("knife", "knives"), ("brush", "brushes"), ("mat", "mats"), ("bottle", "bottles"), ("mug", "mugs"),
    ("hat", "hats"), ("towel", "towels"), ("tray", "trays"), ("rack", "racks"), ("stool", "stools"),
)
BEFORE = (
    "desk", "wall", "garden", "travel", "kitchen", "camping", "office", "pocket", "winter", "summer", "bath",
    "bedside", "reading", "picnic", "party", "school", "sports", "garage", "balcony", "hiking",
)
NEW_NOUNS = (
    ("pillow", "pillows"), ("cup", "cups"), ("jar", "jars"), ("stand", "stands"), ("curtain", "curtains"),
)
NEW_BEFORE = ("hotel", "guest", "study", "wedding", "window", "airport")
COLORS = (
    "red", "blue", "green", "black", "white", "yellow", "gray", "orange", "purple", "brown", "pink", "navy",
    "turquoise", "beige", "olive", "silver", "gold", "violet", "crimson",
)
NEW_COLORS = ("bronze", "cream", "scarlet")
CITIES = (
    "Lyon", "Porto", "Leeds", "Boston", "Denver", "Krakow", "Bergen", "Ghent", "Turin", "Seville", "Austin", "Oslo",
    "Bristol", "Munich", "Toronto", "Kyoto", "Nairobi", "Lima", "Perth", "Cork", "Basel", "Tampa", "Utrecht",
    "Malmo", "Dallas", "Cardiff", "Vienna", "Osaka", "Quito", "Mumbai", "Hobart", "Ottawa", "Dublin", "Geneva",
    "Chicago", "Lagos", "Antwerp", "Glasgow", "Naples", "Calgary", "Warsaw", "Busan", "Madrid", "Hamburg", "Prague",
    "Lisbon", "Milan", "Helsinki", "Dresden", "Bruges", "Nice", "Bordeaux", "Zurich", "Salzburg", "Varna", "Athens",
    "Tallinn", "Riga", "Vilnius", "Gdansk", "Leipzig", "Cologne", "Bremen", "Nantes", "Toulouse", "Granada",
    "Palermo", "Verona", "Bologna", "Houston", "Phoenix", "Seattle", "Portland", "Memphis", "Nashville", "Atlanta",
    "Cleveland", "Detroit", "Montreal", "Vancouver", "Sydney", "Brisbane", "Auckland", "Tokyo", "Seoul", "Delhi",
    "Cairo", "Tunis", "Accra", "Bogota", "Santiago", "Havana",
)
NEW_CITIES = (
    "Bangkok", "Venice", "Rome", "Paris", "Dakar", "Berlin", "Moscow", "Sacramento", "Edinburgh", "Singapore", "Hanoi",
    "Marseille",
)
NAMES = (
    "Anna", "Tom", "Priya", "Jonas", "Maria", "Kenji", "Fatima", "Luca", "Grace", "Omar", "Helen", "Diego", "Ingrid",
    "Samuel", "Chloe", "Ravi", "Nadia", "Peter", "Yuki", "Carmen", "Amara", "Viktor", "Sofia", "Hamid", "Joyce",
    "Elias", "Mei", "Rosa",
)
NEW_NAMES = ("Leila", "Marcus", "Hanna", "Bruno", "Alice", "Karim")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("March", "May", "June", "October")
SHORT_DAYS = {"Monday": "Mon", "Tuesday": "Tue", "Wednesday": "Wed", "Thursday": "Thu", "Friday": "Fri",
              "Saturday": "Sat", "Sunday": "Sun"}
NUMBER_WORDS = {
    1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine",
    10: "ten", 11: "eleven", 12: "twelve", 15: "fifteen", 20: "twenty",
}


@dataclass(frozen=True, slots=True)
class Wordings:
    """Sentences for each kind of clause.

    Slots: np "three red mugs"; items, q, color, city, day; other_*: a value that the customer does not want; name, id,
    price, date, phone, house: noise.
    """

    greeting: tuple[str, ...]
    core: tuple[str, ...]
    core_city: tuple[str, ...]
    color: tuple[str, ...]
    city: tuple[str, ...]
    day: tuple[str, ...]
    noise: tuple[str, ...]
    fix_quantity: tuple[str, ...]
    fix_color: tuple[str, ...]
    fix_city: tuple[str, ...]
    closing: tuple[str, ...]


TRAINING = Wordings(
    greeting=(
        "Hi!", "Hello!", "Good morning.", "Hi there!", "Hey!", "Dear team!", "Hello, {name} here.", "Good evening.",
        "Hi, it's {name} again.", "Hi all!", "Greetings!", "Hey folks!", "Morning!",
        "Good afternoon, my name is {name}.", "Hiya!", "Dear sir or madam!",
    ),
    core=(
        "I would like to order {np}.", "Could I get {np}, please?", "We need {np}.",
        "Please put {np} on my account.", "I want to buy {np}.", "Can you reserve {np} for me?", "I'll take {np}.",
        "Order: {np}.", "Put me down for {np}.", "I'm after {np}.", "My order is {np}.",
        "Would it be possible to get {np}?", "{name} asked me to order {np}.", "Item: {items}. Number: {q}.",
        "How about {np}?", "I saw your {items} and I want {q}.", "Please add {np} to the basket.",
        "About your {items}: {q} for me.", "Is it possible to buy {np} here?", "We'd love {np}.",
        "We have run out of {items} and need {q}.", "Sell me {np}, please.", "{np}, please.", "Let's order {np}.",
        "Please prepare {np}.", "I've chosen {np}.", "What I want is {np}.", "One order: {np}.",
        "Do you still have {np}? If so, I'm buying.", "It's time we got {np}.", "Kindly book {np} under my name.",
        "We've run out, so {np} it is.", "{np} would be lovely.", "I've decided on {np}.",
        "What I'm looking for is {np}.", "Let me have {np}.", "Shopping list: {np}.",
        "Your {items} look great, so {q} of them it will be.",
    ),
    core_city=(
        "Please send {np} to {city}.", "I need {np} delivered to {city}.", "Can you ship {np} to {city}?",
        "{np} for our office in {city}, please.", "I'd like {np} sent to my flat in {city}.",
        "Deliver {np} to {city}.", "We want {np} for the shop in {city}.", "Send to {city}: {np}.",
        "My sister in {city} needs {np}, please send it there.", "Please have {np} brought to {city}.",
        "Someone in {city} wants {np}.", "Bring {np} to our house in {city}.", "Can {np} be in {city} soon?",
        "I'm in {city} and would like {np}.", "{city} needs {np}.", "Get me {np}, I'm staying in {city}.",
        "{city} is where {np} should end up.", "Somebody in {city} is waiting for {np}.",
        "Could {np} reach {city} somehow?", "I'm moving to {city} and will want {np} there.",
        "Get {np} over to {city}, would you?", "Our team in {city} asked for {np}.",
    ),
    color=(
        "In {color}, please.", "The color should be {color}.", "I want {color}.", "Make it {color}.",
        "Color: {color}.", "It has to be {color}.", "{color} if you have it.", "I like {color} best.",
        "{color} would suit me.", "Please choose {color}.", "About the color: {color}.",
        "Only {color}, no other color.", "{color} goes well with my sofa.",
        "{color} is my favorite, so go for that.", "Preferably {color}.", "Only {color} will match my kitchen.",
        "As for the color, {color}.", "Nothing but {color}, thanks.",
    ),
    city=(
        "Deliver to {city}.", "The address is {house} Mill Road, {city}.", "Please ship to {city}.",
        "It goes to {city}.", "Send it to {city}.", "I live in {city}.", "Delivery address: {city}.",
        "Ship everything to our {city} office.", "The parcel should go to {name} in {city}.",
        "My place is in {city}.", "Destination: {city}.", "Bring it to {city}, please.", "I'm staying in {city}.",
        "We are in {city}.", "Where it goes: {city}.", "The driver should come to {city}.",
        "Mail it to {name}, {house} Park Lane, {city}.", "You'll find me in {city} these days.",
        "Post it to {name}, {house} Station Street, {city}.", "The courier should head for {city}.",
        "Where to? {city}.", "Drop it off in {city}.", "We are based in {city}, so bring it here.",
    ),
    day=(
        "I need it by {day}.", "Please deliver by {day}.", "It should arrive before {day} is over.",
        "By {day} at the latest.", "Deadline: {day}.", "It must be here on {day}.", "Can it be there by {day}?",
        "We need everything by {day}.", "{day} would be the day to deliver.", "Delivery on {day}, please.",
        "I leave after {day}.", "The wedding is on {day}, so it has to be there.", "Not later than {day}.",
        "{day} is fine for the delivery.", "Will it arrive on {day}?", "The last possible day is {day}.",
        "I'd like to have it on {day}.", "Our event is on {day}.", "{day} is the last day that works for me.",
        "No later than {day}, if you can.", "I'm away after {day}, so be quick.",
        "The party is on {day}, have it there in time.", "Would {day} work for the delivery?",
        "Let it arrive on {day}.",
    ),
    noise=(
        "My order number last time was {id}.", "You can call me at {phone}.", "I paid ${price} last year.",
        "My customer number is {id}.", "I saw it in your catalog on page {house}.",
        "I have a voucher worth ${price}.", "I don't need {other_np} any more.",
        "The last delivery came on {other_day}.", "I'm {house} years old.", "I bought {other_np} from you before.",
        "I used to live in {other_city}.", "Your shop in {other_city} was closed.", "I called you on {other_day}.",
        "Please don't send {other_items}.", "{name} said the {other_items} are nice too.",
        "I like the {other_color} ones less.", "The invoice from {date} is paid.",
        "Is it true that {price} dollars is the price?", "We were {other_q} people when we visited you.",
        "My case number is {id}.", "I was in {other_city} last week.", "My cousin from {other_city} says hello.",
        "On {other_day} nobody answered the phone.", "Last {other_day} I got a wrong parcel.",
        "My old {other_items} are broken.", "{name} bought {other_np} last month.", "I never liked {other_color}.",
        "My limit was ${price} before.", "Your letter from {date} came.", "There are {other_q} of us at home.",
        "Call {phone} if you have questions.", "Reference {id}, in case it matters.",
        "Text me on {phone} if something is wrong.", "My budget was ${price} once.",
        "On {date} I got a letter from you.", "Last {other_day} your website was down.",
        "My neighbor ordered {other_np} and loves it.", "Forget about the {other_items} I mentioned.",
        "I grew up in {other_city}.", "Never again {other_color}, by the way.", "Our house number is {house}.",
        "My {other_q} kids say hello.", "A friend from {other_city} told me about you.",
    ),
    fix_quantity=(
        "Actually, make that {q}.", "Sorry, I meant {q}.", "No, wait, {q}.",
        "Correction: {q} in total, not {other_q}.", "On second thought, {q} is better than {other_q}.",
        "Change the number to {q}.", "Better take {q}, not {other_q}.", "Oh, {other_q} is wrong, I need {q}.",
        "I mean {q} instead of {other_q}.", "Hmm, {other_q} won't do, better {q}.",
        "Oh, scratch that, we are more careful now: {q}.", "Let's say {q} rather than {other_q}.",
    ),
    fix_color=(
        "Actually in {color}.", "Sorry, {color}, not {other_color}.", "No, make it {color} instead.",
        "Change the color to {color}.", "I changed my mind: {color}.", "Better take {color}, not {other_color}.",
        "Oh, {other_color} is wrong, I need {color}.", "I mean {color} instead of {other_color}.",
        "Oh no, {other_color} won't fit, so {color} after all.", "Let's go with {color} rather than {other_color}.",
        "Scratch the color, I prefer {color}.",
    ),
    fix_city=(
        "Sorry, I meant {city}, not {other_city}.", "Actually, send it to {city} instead.",
        "No, wait, it has to go to {city}.", "Correction: the city is {city}.",
        "Better send it to {city}, not {other_city}.", "Oh, {other_city} is wrong, it has to be {city}.",
        "We moved from {other_city} to {city}.", "Oops, {other_city} is the old address, the new one is in {city}.",
        "Not {other_city}! {city}, of course.", "Let's have it in {city} rather than {other_city}.",
    ),
    closing=(
        "Thanks!", "Thank you.", "Best, {name}", "Kind regards, {name}", "Many thanks, {name}", "Cheers, {name}",
        "Thanks in advance.", "Yours, {name}", "Bye!", "Take care, {name}", "Much appreciated.",
        "All the best, {name}", "See you soon!", "Sincerely, {name}",
    ),
)

HELD_OUT = Wordings(
    greeting=(
        "Hi team!", "Hello everyone!", "Good day!", "Hey, {name} speaking.", "Hello from {name}.",
        "Hi, a quick one.",
    ),
    core=(
        "Do reserve {np} for me.", "Our club needs {np}.", "I am interested in {np}.",
        "Could you set aside {np} for me?", "I'd be glad to get {np}.", "We are looking to buy {np}.",
        "Please get {np} ready.", "Can I have {np}?", "I wish to purchase {np}.", "This time I need {np}.",
        "It would be great to have {np}.", "Please note my order of {np}.", "For our kitchen we want {np}.",
    ),
    core_city=(
        "Have {np} sent to {city}, please.",
        "Please ship {np} to our place in {city}.", "We would like {np} delivered to {city}.",
        "Is it possible to send {np} to {city}?", "I want {np} and I live in {city}.",
        "Kindly deliver {np} to my office in {city}.", "{np} to {city}, please.",
    ),
    color=(
        "Something in {color} would be nice.", "It ought to be {color}.",
        "I'd like it in {color}.", "The color is {color}.", "{color} is the color I want.",
        "Please make sure it is {color}.", "Best in {color}.", "We decided on {color}.",
    ),
    city=(
        "Everything goes to {city}, please.", "Ship it over to {city}.",
        "Please deliver everything to {city}.", "This one should travel to {city}.", "Send the parcel to {city}.",
        "My address is {house} Oak Street, {city}.", "We live in {city}.", "The delivery goes to {name} in {city}.",
    ),
    day=(
        "I have to have it by {day}.", "{day} at the latest, please.",
        "We need it on {day}.", "Please bring it by {day}.", "It has to arrive by {day}.",
        "I want to have it before {day} ends.", "{day} is when we need it.", "Delivery is needed by {day}.",
    ),
    noise=(
        "I moved here from {other_city}.",
        "My account number is {id}.", "My phone number is {phone}.", "I paid ${price} for the last one.",
        "I visited {other_city} last month.", "{name} recommended your shop.", "I have {other_np} at home already.",
        "We talked on {other_day}.", "I found your shop on page {house} of a magazine.",
        "The bill of {date} was fine.", "My brother lives in {other_city}.",
    ),
    fix_quantity=(
        "Sorry, make it {q}, not {other_q}.", "Wait, I need {q} of them.", "Actually {q}, not {other_q}.",
    ),
    fix_color=(
        "Sorry, make it {color}, not {other_color}.", "Wait, better in {color}.",
        "Actually {color}, not {other_color}.",
    ),
    fix_city=(
        "Sorry, send it to {city}, not {other_city}.", "Wait, it should go to {city}.",
        "Actually {city}, not {other_city}.",
    ),
    closing=(
        "Thanks a lot!", "Greetings, {name}", "Regards, {name}", "Have a nice day!", "Talk soon, {name}",
    ),
)
