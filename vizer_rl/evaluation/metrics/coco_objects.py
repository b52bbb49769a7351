"""Words for COCO's 80 classes, with plurals and double words, and the classes a caption mentions.

A table of our own of usual synonyms: CHAIR with it is close to Rohrbach et al.'s, not equal.
"""

from __future__ import annotations

import re

from .ptb import tokenize

# A class and its other names, on one line or going on behind an indent; plurals follow by rule.
SYNONYMS = """
person: man, woman, boy, girl, child, kid, baby, toddler, infant, adult, lady, guy, gentleman,
  male, female, pedestrian, player, rider, surfer, skier, snowboarder, skateboarder, skater,
  cyclist, bicyclist, biker, motorcyclist, baseball player, tennis player, soccer player, batter,
  pitcher, catcher, umpire, referee, worker, officer, policeman, policewoman, cop, soldier,
  fireman, firefighter, chef, cook, baker, waiter, waitress, bride, groom, mother, father, mom,
  dad, son, daughter, brother, sister, husband, wife, grandmother, grandfather, teenager, student,
  teacher, passenger, traveler, tourist, spectator, swimmer, jockey, cowboy, farmer, businessman,
  doctor, human, people, crowd, couple of people, athlete, driver, conductor, musician,
  photographer, shopper, diner, friend
bicycle: bike, cycle, push bike
car: automobile, sedan, suv, taxi, cab, taxi cab, police car, minivan, van, jeep, hatchback,
  convertible, race car, sports car, limousine
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane: plane, aeroplane, air plane, jet, aircraft, jetliner, airliner, jumbo jet, biplane,
  fighter jet
bus: school bus, city bus, double decker bus, double decker, minibus, trolley bus, coach bus
train: locomotive, passenger train, freight train, steam engine, train engine, train car, subway
  train, tram, trolley car
truck: pickup, pick up truck, pickup truck, lorry, fire truck, firetruck, fire engine, dump truck,
  semi truck, tow truck, garbage truck, food truck
boat: ship, sailboat, sail boat, canoe, kayak, ferry, yacht, rowboat, row boat, motorboat,
  speedboat, raft, gondola, barge, dinghy
traffic light: traffic signal, stop light, stoplight, street signal
fire hydrant: hydrant, fireplug
stop sign:
parking meter:
bench: park bench
bird: pigeon, seagull, gull, duck, goose, swan, parrot, owl, eagle, hawk, crow, sparrow, ostrich,
  peacock, pelican, flamingo, chicken, rooster, hen, penguin, parakeet, dove, heron, turkey,
  robin, finch
cat: kitten, kitty, tabby, tomcat, feline
dog: puppy, pup, doggy, hound, poodle, terrier, dachshund, labrador, retriever, golden retriever,
  bulldog, german shepherd, collie, corgi, pug, beagle, chihuahua, dalmatian, canine
horse: pony, foal, mare, stallion, colt
sheep: lamb, ram, ewe
cow: cattle, calf, bull, ox, heifer, steer, longhorn
elephant:
bear: polar bear, grizzly bear, grizzly, brown bear, black bear, panda, panda bear, bear cub
zebra:
giraffe:
backpack: back pack, knapsack, rucksack, book bag
umbrella: parasol
handbag: hand bag, purse, wallet, pocketbook
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, piece of luggage, briefcase
frisbee: flying disc, flying disk
skis: ski, pair of skis
snowboard: snow board
sports ball: ball, baseball, tennis ball, soccer ball, basketball, football, volleyball, softball,
  golf ball, rugby ball
kite:
baseball bat: bat
baseball glove: baseball mitt, catcher 's mitt, mitt
skateboard: skate board
surfboard: surf board, boogie board, longboard, bodyboard
tennis racket: racket, racquet, tennis racquet
bottle: wine bottle, beer bottle, water bottle
wine glass: wineglass, glass of wine, champagne glass, goblet
cup: mug, coffee cup, tea cup, teacup, coffee mug
fork:
knife: butter knife, pocketknife
spoon: tablespoon, teaspoon
bowl:
banana:
apple:
sandwich: sub sandwich, burger, hamburger, cheeseburger, panini
orange: mandarin, clementine, tangerine
broccoli:
carrot: baby carrot
hot dog: hotdog, corn dog
pizza: slice of pizza, pizza pie
donut: doughnut, bagel
cake: cupcake, cheesecake, birthday cake, wedding cake
chair: armchair, arm chair, stool, rocking chair, high chair, lawn chair, recliner
couch: sofa, loveseat, love seat, futon, settee
potted plant: houseplant, house plant, pot plant, potted flower, potted tree
bed: bunk bed, hospital bed, mattress
dining table: table, desk, kitchen table, coffee table, picnic table
toilet: urinal, commode, toilet bowl, toilet seat
tv: television, tv set, television set, flat screen, monitor, computer monitor
laptop: laptop computer, notebook computer, macbook
mouse: computer mouse
remote: remote control, wii remote, wiimote, game controller, controller, wii controller
keyboard: computer keyboard
cell phone: cellphone, phone, mobile phone, smartphone, smart phone, iphone, telephone, mobile
microwave: microwave oven
oven: stove, stove top oven, stovetop, stove top
toaster:
sink: wash basin, washbasin
refrigerator: fridge, freezer
book: textbook, cookbook, novel
clock: clock tower, alarm clock, wall clock
vase:
scissors: pair of scissors, scissor, shears
teddy bear: teddy, teddybear, stuffed bear
hair drier: hair dryer, hairdryer, blow dryer, hair blower
toothbrush: tooth brush
"""
# Double words that name none of the classes of their parts.
OTHER_THINGS = """
train track, train station, train platform, train yard, bus stop, bus station, bus shelter, bus
lane, home plate, license plate, car seat, car park, bike rack, bike lane, bike path, boat house,
dog house, dog bed, dog bowl, dog park, bird house, bird feeder, bird cage, horse carriage, cow
boy, cat food, dog food, toilet paper, toilet brush, book shelf, book case, table cloth, table
tennis, chair lift, ski lift, ski slope, ski resort, ski pole, ski jump, kite board, ball field,
ball park, baseball field, baseball game, baseball diamond, baseball cap, baseball hat, baseball
stadium, baseball uniform, football field, soccer field, basketball court, basketball game, tennis
court, tennis match, phone booth, bear skin, mouse pad, remote area, remote location, cake pan,
pizza box, pizza oven, pizza shop, pizza cutter, apple pie, apple tree, apple juice, banana bread,
banana tree, carrot cake, orange juice, orange tree, sheep dog, bed room, sink hole, horse shoe,
human being, glove compartment
"""
ANIMALS = {"bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"}
IRREGULAR = {"person": "persons", "people": "people", "child": "children", "foot": "feet"}
IRREGULAR |= {"goose": "geese", "mouse": "mice", "ox": "oxen", "sheep": "sheep", "cattle": "cattle"}
IRREGULAR |= {"knife": "knives", "wife": "wives", "calf": "calves", "luggage": "luggage"}
IRREGULAR |= {"skis": "skis", "scissors": "scissors", "shears": "shears", "aircraft": "aircraft"}
# "orange" is the fruit in "an orange on a plate", not in "an orange cat" or "orange and white".
BEFORE_FRUIT = {"an", "one", "the", "each", "whole", "half", "peeled", "sliced", "fresh"}
AFTER_FRUIT = "and or on in with near next beside by at from is sits sitting sliced cut that behind"
COLOURS = "white black red blue green yellow brown pink purple grey gray orange"
MAX_WORDS = 4
Phrase = tuple[str, ...]
NAMES = SYNONYMS.strip().replace("\n  ", " ").split("\n")


def plural(word: str) -> str:
    """The plural of an English noun."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("man"):
        return "humans" if word == "human" else word[:-3] + "men"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def _phrases() -> dict[Phrase, str]:
    """Every name of every class, singular and plural, and "" for what is another thing."""
    names: dict[str, str] = {}
    for line in NAMES:
        label, _, others = line.partition(":")
        names |= {name.strip(): label for name in (label, *others.split(",")) if name.strip()}
    names |= {name.strip(): "" for name in OTHER_THINGS.replace("\n", " ").split(",")}
    names |= {
        f"{age} {a}": a for age in ("baby", "adult", "mother", "male", "female") for a in ANIMALS
    }
    phrases: dict[Phrase, str] = {}
    for name, label in names.items():
        *first, last = name.split()
        phrases |= {(*first, last): label, (*first, plural(last)): label}
    return phrases


PHRASES = _phrases()
CLASSES = tuple(line.partition(":")[0] for line in NAMES)


def mentions(caption: str) -> list[str]:
    """The COCO class of each mention in a caption, in order; the longest name counts."""
    words = [w for token in tokenize(caption) for w in re.split(r"[-/_.]", token) if w]
    classes, place = list[str](), 0
    while place < len(words):
        sizes = range(min(MAX_WORDS, len(words) - place), 0, -1)
        fits = (size for size in sizes if tuple(words[place : place + size]) in PHRASES)
        size = next(fits, 0)
        label = PHRASES[tuple(words[place : place + size])] if size else ""
        if label and (words[place] != "orange" or _is_fruit(words, place)):
            classes.append(label)
        place += max(1, size)
    return classes


def _is_fruit(words: list[str], place: int) -> bool:
    """Whether the word "orange" is a thing."""
    before = words[place - 1] if place else ""
    after, second = [*words[place + 1 : place + 3], "", ""][:2]
    colour = after in ("and", "or") and second in COLOURS.split()
    return before in BEFORE_FRUIT and not colour and after in ("", *AFTER_FRUIT.split())
